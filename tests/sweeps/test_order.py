"""The order in which the jobs of a sweep are started."""

import dataclasses
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.compose import compose_command
from nanolm.errors import SettingsError
from nanolm.model.count import training_flops_per_token
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.order import Order, in_order, training_cost
from nanolm.sweeps.planning import Job
from tests.helpers import SMALL, make_config

BYTES = (*SMALL, "tokenizer=byte", "trainer.max_steps=10")


def job(*overrides: str) -> Job:
    return Job({"job": overrides[-1]}, make_config(*BYTES, *overrides), {}, "", RunDirectory(Path("none")))


def labels(jobs: list[Job]) -> list[str]:
    return [each.swept["job"] for each in jobs]


def test_longest_jobs_come_first_by_their_flops() -> None:
    jobs = [
        job("trainer.max_steps=20"),
        job("model=ngram"),
        job("size.d_model=64"),
        job("trainer.max_steps=30"),
        job("model=bigram"),
        job("trainer.max_flops=1e12"),
    ]
    assert labels(in_order(jobs, Order.longest_first)) == [
        "trainer.max_flops=1e12",
        "size.d_model=64",
        "trainer.max_steps=30",
        "trainer.max_steps=20",
        "model=bigram",
        "model=ngram",
    ]
    assert in_order(jobs, Order.given) == jobs


def test_jobs_of_unknown_length_come_before_the_longest(tmp_path: Path) -> None:
    missing = ("tokenizer=char", "dataset=text", f"dataset.path={tmp_path}/missing.txt")
    jobs = [job("seed=1"), job("trainer.max_minutes=1"), job("trainer.max_minutes=2"), job(*missing)]
    assert labels(in_order(jobs, Order.longest_first)) == [
        "trainer.max_minutes=2",
        "trainer.max_minutes=1",
        missing[-1],
        "seed=1",
    ]


def test_the_vocabulary_of_a_text_is_counted(small_text: Path) -> None:
    words, characters = (
        job(f"tokenizer={name}", "dataset=text", f"dataset.path={small_text}") for name in ("word", "char")
    )
    assert in_order([characters, words], Order.longest_first) == [words, characters]


def test_by_seed_runs_each_setting_with_one_seed_first() -> None:
    jobs = [dataclasses.replace(job(f"seed={seed}"), key=key) for key in "ab" for seed in (2, 1)]
    assert [(each.config.seed, each.key) for each in in_order(jobs, Order.by_seed)] == [
        (1, "a"),
        (1, "b"),
        (2, "a"),
        (2, "b"),
    ]


def test_flops_of_a_run_are_those_of_count() -> None:
    config = make_config(*BYTES, "model=gpt2")
    tokens = 10 * 4 * 16
    assert training_cost(config, 256) == (tokens * (training_flops_per_token(config, 256) or 0), tokens)
    assert training_cost(config, None) is None


def test_an_unknown_order_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"unknown order 'longest'\n  where: sweep\.order\n.*longest_first"):
        cli.run(["train", "-m", *SMALL, "seed=1,2", "sweep.order=longest"])
    assert not list(tmp_path.iterdir())


def test_a_study_has_no_order() -> None:
    with pytest.raises(SettingsError, match=r"the chosen sweeper has no sweep\.order\n  where: sweep\.order=by_seed"):
        compose_command(["hydra/sweeper=optuna", "sweep.order=by_seed"], multirun=True)
