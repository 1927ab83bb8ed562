"""Sweeps that are killed, interrupted or started twice give the same results as uninterrupted ones."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from nanolm.locks import holder_of
from nanolm.runs.directory import RunDirectory
from tests.helpers import (
    SMALL,
    Nanolm,
    final_state,
    is_same_state,
    kill_process_group,
    make_config,
    untimed_rows,
    wait_until,
)

OVERRIDES = (*SMALL, "dataset=text", "trainer.save_every=40", "trainer.eval_every=80", "trainer.log_every=10")
# 12 jobs.
JOBS = ("model=bigram,gpt2", "optimizer.lr=1e-3,3e-3", "seed=1,2,3")
LOCAL = ("hydra/launcher=local", "hydra.launcher.n_jobs=2")


def runs_in(folder: Path) -> dict[str, RunDirectory]:
    return {path.parent.name: RunDirectory(path.parent) for path in sorted(folder.glob("*/config.yaml"))}


def count_started(folder: Path) -> int:
    """Count the runs with at least one row."""
    return sum(run.metrics.exists() and run.metrics.stat().st_size > 0 for run in runs_in(folder).values())


def is_completed(run: RunDirectory) -> bool:
    return run.read_summary().status == "completed"


def fingerprint(run: RunDirectory) -> tuple[Any, ...]:
    """Return the rows and the modification times of the files of a run, to detect changes."""
    files = (run.metrics, run.summary, run.config, run.log)
    return (run.metrics.read_bytes(), *(path.stat().st_mtime_ns for path in files))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("launcher", [(), LOCAL])
def test_a_sweep_killed_three_times_gives_the_same_runs(
    launcher: tuple[str, ...], nanolm: Nanolm, small_text: Path
) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "trainer.max_steps=160", *JOBS)
    uninterrupted = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=900)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    folder = nanolm.folder / "resumed"
    overrides = (*line, "hydra.sweep.dir=resumed", *launcher)
    generator = random.Random(7)
    completed_runs: dict[str, tuple[Any, ...]] = {}
    for kill in range(3):
        process = nanolm.start("train", "-m", *overrides)
        target = count_started(folder) + generator.randint(1, 3)
        wait_until(lambda target=target: count_started(folder) >= target, process)
        time.sleep(generator.random())
        kill_process_group(process)
        now = {name: fingerprint(run) for name, run in runs_in(folder).items() if is_completed(run)}
        assert {name: now[name] for name in completed_runs} == completed_runs, (
            f"a completed job was changed before kill {kill}"
        )
        completed_runs = now
    done = nanolm("train", "-m", *overrides, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "12 jobs: 12 completed" in done.stdout
    assert 0 < len(completed_runs) < 12
    whole, resumed = runs_in(nanolm.folder / "whole"), runs_in(folder)
    assert whole.keys() == resumed.keys()
    assert len(resumed) == 12
    assert {name: fingerprint(resumed[name]) for name in completed_runs} == completed_runs
    for name in whole:
        assert is_completed(resumed[name])
        assert untimed_rows(resumed[name]) == untimed_rows(whole[name])
        assert is_same_state(final_state(resumed[name]), final_state(whole[name]))


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["workers", "driver"])
def test_processes_of_the_local_launcher_are_killed(killed: str, nanolm: Nanolm, small_text: Path) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "trainer.max_steps=600", "model=bigram,gpt2", "seed=1,2")
    undisturbed = nanolm("train", "-m", *line, "hydra.sweep.dir=whole", timeout=300)
    assert undisturbed.returncode == 0, undisturbed.stderr
    folder = nanolm.folder / "resumed"
    overrides = (*line, "hydra.sweep.dir=resumed", *LOCAL)
    process = nanolm.start("train", "-m", *overrides)
    wait_until(lambda: count_started(folder) == 2, process)
    holders = [holder for run in runs_in(folder).values() if (holder := holder_of(run.lock))]
    assert len({holder.process for holder in holders}) == 2
    for holder in holders:
        os.kill(holder.process if killed == "workers" else process.pid, signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    if killed == "workers":
        assert err.count("was killed by SIGKILL") == 2
    else:
        assert process.returncode == -signal.SIGKILL
        # The workers have ended, after a checkpoint.
        saved = [run.read_summary() for run in runs_in(folder).values()]
        assert [summary.status for summary in saved] == ["interrupted"] * 2
        done = nanolm("train", "-m", *overrides, timeout=300)
        process.returncode, out, err = done.returncode, done.stdout, done.stderr
    assert process.returncode == 0, err
    assert "4 jobs: 4 completed" in out
    assert "Traceback" not in err
    assert "Warning" not in err
    whole, resumed = runs_in(nanolm.folder / "whole"), runs_in(folder)
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert untimed_rows(resumed[name]) == untimed_rows(whole[name])
        assert is_same_state(final_state(resumed[name]), final_state(whole[name]))


def test_two_processes_share_the_jobs_of_a_sweep(nanolm: Nanolm, small_text: Path) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "trainer.max_steps=40", "model=bigram")
    shells = [
        nanolm.start("train", "-m", *line, "seed=1,2,3,4"),
        nanolm.start("train", "-m", "seed=4,3,2,1,5", *line, f"optimizer.lr={make_config().optimizer.lr}"),
    ]
    outputs = [shell.communicate(timeout=300) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], outputs
    assert "4 jobs: 4 completed" in outputs[0][0]
    assert "5 jobs: 5 completed" in outputs[1][0]
    runs = runs_in(nanolm.folder / "outputs" / "sweep")
    assert sorted(run.read_summary().seed for run in runs.values()) == [1, 2, 3, 4, 5]
    for run in runs.values():
        # Each run starts once, and has one row per step.
        assert run.log.read_text().count("run directory") == 1
        assert [row.step for row in run.read_metrics("train")] == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_the_job_and_ends_the_sweep(
    number: signal.Signals, status: int, nanolm: Nanolm, small_text: Path
) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "model=bigram", "seed=1,2")
    process = nanolm.start("train", "-m", *line, "trainer.max_steps=100000")
    folder = nanolm.folder / "outputs" / "sweep"
    wait_until(lambda: count_started(folder) == 1, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert "1 interrupted" in out
    (run,) = runs_in(folder).values()
    summary = run.read_summary()
    assert summary.status == "interrupted"
    assert (run.checkpoints / f"step-{summary.step:08d}").is_dir()
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [run.path.name]
    assert not list(folder.glob(".stop*"))


@pytest.mark.slow
def test_a_signal_to_the_driver_ends_jobs_of_other_processes(nanolm: Nanolm, small_text: Path) -> None:
    line = (*OVERRIDES, f"dataset.path={small_text}", "model=bigram", "seed=1,2,3", "trainer.max_steps=100000")
    process = nanolm.start("train", "-m", *line, *LOCAL)
    folder = nanolm.folder / "outputs" / "sweep"
    wait_until(lambda: count_started(folder) == 2, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert "2 interrupted" in out
    for run in runs_in(folder).values():
        summary = run.read_summary()
        assert summary.status == "interrupted"
        assert json.loads(run.metrics.read_text().splitlines()[-1])["step"] <= summary.step
        assert (run.checkpoints / f"step-{summary.step:08d}").is_dir()


PLUGIN = """
from pathlib import Path
import torch
from nanolm.registry import MODELS

class Unigram(torch.nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(vocab_size))

    def forward(self, tokens):
        return self.logits.expand(*tokens.shape, len(self.logits))

@MODELS.register("fragile")
def fragile(config, vocab_size):
    if config.seed == 2 and config.optimizer.lr == 0.01 and not Path("fixed").exists():
        raise RuntimeError("a part is missing")
    return Unigram(vocab_size)
"""


@pytest.mark.slow
def test_a_sweep_reruns_only_the_failed_job(nanolm: Nanolm, small_text: Path) -> None:
    (nanolm.folder / "fragile.py").write_text(PLUGIN)
    line = (*OVERRIDES, f"dataset.path={small_text}", "trainer.max_steps=5", "plugins=[fragile]", "model=fragile")
    overrides = (*line, "optimizer.lr=1e-3,1e-2,1", "seed=1,2,3,4")
    done = nanolm("train", "-m", *overrides, timeout=400)
    assert done.returncode == 1, done.stderr
    assert "12 jobs: 11 completed, 1 failed" in done.stdout
    folder = nanolm.folder / "outputs" / "sweep"
    (failed,) = folder.glob("optimizer.lr=0.01,seed=2-*")
    assert f"nanolm: {failed.relative_to(nanolm.folder)} failed: RuntimeError: a part is missing" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Traceback" in (failed / "train.log").read_text()
    before = {name: fingerprint(run) for name, run in runs_in(folder).items()}
    assert len(before) == 11

    (nanolm.folder / "fixed").touch()
    done = nanolm("train", "-m", *overrides, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "12 jobs in outputs/sweep, 11 of them done" in done.stderr
    after = {name: fingerprint(run) for name, run in runs_in(folder).items()}
    assert after.keys() - before.keys() == {failed.name}
    assert before.items() <= after.items()
