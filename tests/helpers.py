"""Helpers that tests of several modules share: small runs, the command as a user runs it, comparisons of runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.compose import Bases, compose_config
from nanolm.config.checks import check
from nanolm.config.dataset import DatasetConfig
from nanolm.config.mask import CausalConfig
from nanolm.config.optimizer import OptimizerConfig
from nanolm.config.run import Config
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.model.attention_backends import AttentionContext
from nanolm.runs.directory import RunDirectory
from nanolm.training import trainer
from nanolm.training.checkpoints import files as checkpoint
from tests.forks import Forked

REPOSITORY = Path(__file__).resolve().parent.parent


# A model that trains in no time, on text that every machine has.
SMALL = (
    "size.n_layers=2",
    "size.n_heads=2",
    "size.d_model=16",
    "size.context_length=16",
    "trainer.batch_size=4",
    "trainer.sample_tokens=0",
    "trainer.device=cpu",
    "logger=none",
)


# What the lines of tests have been composed from.
BASES: Bases = {}


class Nanolm:
    """Runs `nanolm` in a folder of its own, as a user would; the caller reads its output and status."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},
            "NANOLM_CACHE": str(cache),
            "WANDB_MODE": "offline",
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in arguments]
        if self._needs_own_python(words):
            command = [sys.executable, "-m", "nanolm", *words]
            where = {"cwd": self.folder, "env": self.environment, "timeout": timeout}
            return subprocess.run(command, capture_output=True, text=True, **where)
        process = Forked(["nanolm", *words], self.folder, self.environment)
        try:
            output, errors = process.communicate(timeout)
        finally:
            process.kill()
        assert process.returncode is not None
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    def start(self, *arguments: str) -> subprocess.Popen[str] | Forked:
        """Begins the command in a group of processes of its own, so that its whole tree can be killed at once."""
        if not self._needs_own_python(arguments):
            return Forked(["nanolm", *arguments], self.folder, self.environment, is_leader=True)
        return subprocess.Popen(
            [sys.executable, "-m", "nanolm", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _needs_own_python(self, words: Sequence[str]) -> bool:
        """Whether something is different that Python and OpenMP read when they start, or a launcher starts others."""
        starts_others = any("hydra/launcher" in word for word in words)
        has_threads = self.environment.get("OMP_NUM_THREADS") != "1"
        return starts_others or has_threads or self.environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH")


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[str] | Forked, seconds: float = 200) -> None:
    """Returns when it is so; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.005)


def has_reached_step(run: RunDirectory, step: int) -> bool:
    """Whether metrics.jsonl has come to that step."""
    lines = run.metrics.read_text().splitlines()[:-1] if run.metrics.exists() else []
    return bool(lines) and json.loads(lines[-1])["step"] >= step


def kill_process_group(process: subprocess.Popen[str] | Forked) -> None:
    """SIGKILL to what `Nanolm.start` began and all that it began."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def make_config(*overrides: str) -> Config:
    """The settings of a line."""
    return compose_config(overrides, BASES)


def mistakes(*overrides: str) -> list[str]:
    """Compose overrides and return the mistakes that checking the settings finds."""
    return [problem.found for problem in check(make_config(*overrides))]


def small_config(text: Path, *overrides: str) -> Config:
    return make_config(*SMALL, "dataset=text", f"dataset.path={text}", *overrides)


def untimed_rows(run: RunDirectory) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what a clock says."""
    timed = ("seconds", "tokens_per_second")
    parsed = (json.loads(line) for line in run.metrics.read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in timed} for row in parsed]


def final_state(run: RunDirectory) -> tuple[dict[str, torch.Tensor], Any]:
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    from safetensors.torch import load_file

    return load_file(found.path / checkpoint.WEIGHTS), found.load_state()


def is_same_state(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        timed = ("seconds", "timed_seconds")
        return a.keys() == b.keys() and all(is_same_state(a[key], b[key]) for key in a if key not in timed)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(is_same_state, a, b))
    return bool(a == b)


class sigterm_at_step:  # noqa: N801
    """Sends SIGTERM to this process in the middle of an update."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        update = trainer.update

        def interrupted(*arguments: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(*arguments)

        self.patch.setattr(trainer, "update", interrupted)

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


def randomize_weights(model: torch.nn.Module) -> None:
    """Moves every weight off its start, where projections may be zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def causal_context(length: int) -> AttentionContext:
    return AttentionContext(CausalConfig(), None, 0, length, None, None, torch.device("cpu"))


def text_config(path: Path, *overrides: str) -> Config:
    """A config whose dataset is a text file, a folder or a glob."""
    return make_config("dataset=text", f"dataset.path='{path}'", *overrides)


def tokenize_text(
    path: Path, text: str, *overrides: str, report: Callable[[str], None] | None = None
) -> dict[str, Stream]:
    """Write a text to a file and tokenize it."""
    path.write_bytes(text.encode())
    return tokenize_config(text_config(path, *overrides), report)


def tokenize_config(config: Config, report: Callable[[str], None] | None = None) -> dict[str, Stream]:
    """Tokenize the dataset of a config."""
    corpus = corpora.load(config.dataset)
    return token_cache.tokenize(corpus, token_cache.fit_tokenizer(corpus, config), config, report)


def stream_folders(cache: Path) -> list[Path]:
    """The folders of the streams in a cache, without the fitted tokenizers."""
    return sorted(path for path in (cache / "streams").glob("[!.]*") if path.name != "tokenizers")


def temporary_files(folder: Path) -> list[str]:
    """The names below a folder that an interrupted write left."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp")]


def make_optimizer_config(name: str, *overrides: str) -> OptimizerConfig:
    """The config of an optimizer with overrides such as "lr=0.1"."""
    return make_config(f"optimizer={name}", *(f"optimizer.{override}" for override in overrides)).optimizer


def set_random_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def full_text(config: DatasetConfig) -> str:
    """The text of a dataset, all splits together."""
    return "".join(piece.text for piece in corpora.load(config).pieces())


def train_and_val(config: DatasetConfig) -> tuple[str, str]:
    """The texts of the two splits of a dataset without a test split."""
    loaded = corpora.load(config)
    assert loaded.splits == ("train", "val")
    return "".join(loaded.documents("train")), "".join(loaded.documents("val"))
