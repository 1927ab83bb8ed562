"""Small real runs, trained once, for tests that read runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nanolm
from nanolm.runs.directory import RunDirectory
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config

LONG_NAME = "a_run_whose_name_is_much_longer_than_any_table_or_legend_is_wide_<!--<script>_<b>&amp;"

# Overrides of the runs of the Python API.
API_WORDS = (*SMALL, "dataset=text", "trainer.log_every=1")


def make_run(folder: Path, text: Path, *overrides: str, **changes: Any) -> Path:
    """Train a run of a few steps; `changes` set lr and seed without composing again."""
    config = make_config("dataset=text", f"dataset.path={text}", *SMALL, "trainer.sample_tokens=12", *overrides)
    config.optimizer.lr = changes.get("lr", config.optimizer.lr)
    config.seed = changes.get("seed", config.seed)
    groups = ("dataset", "tokenizer", "model", "mask", "size", "optimizer", "scheduler", "trainer", "logger")
    given = dict(override.split("=", 1) for override in ("dataset=text", "logger=none", *overrides))
    folder.mkdir(parents=True)
    train(config, RunDirectory(folder), choices={group: given[group] for group in groups if group in given})
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few thousand characters of regular text."""
    path = tmp_path_factory.mktemp("text") / "small.txt"
    path.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}; {n % 7} is left.\n" for n in range(150)))
    return path


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """Twenty runs: a bigram and a transformer, five learning rates, two seeds; one has a hostile name."""
    folder = tmp_path_factory.mktemp("sweep")
    steps = ("trainer.max_steps=6", "trainer.log_every=1", "trainer.eval_every=3")
    for model in ("bigram", "gpt"):
        for lr in (0.001, 0.003, 0.01, 0.03, 0.1):
            for seed in (1, 2):
                name = LONG_NAME if (model, lr, seed) == ("gpt", 0.1, 1) else f"{model}_{lr}_{seed}"
                make_run(folder / name, text, f"model={model}", *steps, lr=lr, seed=seed)
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A bigram, and a transformer whose layers have different masks."""
    folder = tmp_path_factory.mktemp("pair")
    steps = ("trainer.max_steps=6", "trainer.log_every=1", "trainer.eval_every=3")
    make_run(folder / "bigram", text, "model=bigram", *steps)
    make_run(folder / "gpt", text, "model=gpt", "mask=banded_causal", "mask.window=2", "mask.pattern=SL", *steps)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best checkpoint is not its last."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(200)))
    run = RunDirectory(folder / "run")
    run.path.mkdir()
    overrides = ("trainer.max_steps=30", "trainer.eval_every=10", "trainer.save_every=10")
    train(make_config(*SMALL, "dataset=text", f"dataset.path={text}", *overrides), run)
    return run.path


@pytest.fixture(scope="session")
def gpt(tmp_path_factory: pytest.TempPathFactory, text: Path) -> nanolm.Run:
    """A transformer of two layers after a few steps, trained through the Python API."""
    folder = tmp_path_factory.mktemp("api") / "gpt"
    words = (*API_WORDS, f"dataset.path={text}", "model=gpt", f"hydra.run.dir={folder}")
    return nanolm.train(*words, quiet=True, max_steps=6, eval_every=3, log_norms=True)
