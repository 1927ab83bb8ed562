"""Runs interrupted or killed at chosen and at random moments resume to the same result as uninterrupted ones."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanolm import checksummed
from nanolm.config.run import Config
from nanolm.runs.directory import RunDirectory
from nanolm.training import evaluation, trainer
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.forks import FORKS, train_in_child
from tests.helpers import final_state, is_same_state, small_config, untimed_rows

# A function that is interrupted, and at which of its calls.
MOMENTS = {
    "forward": (trainer, "update", 15),
    "evaluation": (evaluation, "exact_loss", 2),
    "save": (checksummed.FolderWriter, "add", 6),
}
SHORT = (
    "model.dropout=0.3",
    "trainer.max_steps=24",
    "trainer.eval_every=8",
    "trainer.save_every=6",
    "trainer.log_every=3",
)


def call_before(owner: Any, name: str, number: int, action: Callable[[], None]) -> None:
    """Patch a function so that an action is called before its call of this number."""
    function = getattr(owner, name)
    n_left = number

    def patched(*arguments: Any, **keywords: Any) -> Any:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            action()
        return function(*arguments, **keywords)

    setattr(owner, name, patched)


def train_with_sigterm(config: Config, path: Path, moment: str, n_signals: int) -> None:
    """Train, and send SIGTERM to this process at a moment, once or several times."""

    def send() -> None:
        for _ in range(n_signals):
            os.kill(os.getpid(), signal.SIGTERM)
            # Pending signals of one number are merged.
            time.sleep(0.5)

    call_before(*MOMENTS[moment], send)
    train_in_child(config, path)


def train_and_block_in_a_save(config: Config, path: Path, marker: Path, number: int) -> None:
    """Train until a file of a checkpoint is about to be flushed, then create a marker and block."""

    def block() -> None:
        marker.touch()
        time.sleep(600)

    call_before(checksummed.FolderWriter, "add", number, block)
    train_in_child(config, path)


def uninterrupted(config: Config, path: Path) -> tuple[list[dict[str, Any]], Any]:
    """Train in one go and return the rows and the final state."""
    path.mkdir()
    run = RunDirectory(path)
    train(config, run)
    return untimed_rows(run), final_state(run)


@pytest.mark.parametrize("n_signals", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_saves_and_a_second_one_exits_at_once(
    moment: str, n_signals: int, small_text: Path, tmp_path: Path
) -> None:
    config = small_config(small_text, *SHORT)
    expected_rows, expected_state = uninterrupted(config, tmp_path / "whole")
    run = RunDirectory(tmp_path / "run")
    child = FORKS.Process(target=train_with_sigterm, args=(config, run.path, moment, n_signals))
    child.start()
    child.join(100)
    assert child.exitcode == 143, run.path.with_suffix(".errors").read_text()
    found, damaged = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert damaged == []
    summary = run.read_summary()
    if n_signals == 1:
        assert (summary.status, summary.step) == ("interrupted", found.step)
        assert not list(run.checkpoints.glob(".*"))
    else:
        # The second signal comes before the save that the first one requested, or during the save in progress.
        assert summary.status == "running"
        assert found.step == {"forward": 12, "evaluation": 12, "save": 6}[moment]
        assert bool(list(run.checkpoints.glob(".step-*.tmp"))) == (moment == "save")
    train(config, run)
    assert untimed_rows(run) == expected_rows
    assert is_same_state(final_state(run), expected_state)
    assert not list(run.checkpoints.glob(".*"))


def last_announced(run: RunDirectory) -> int:
    """Return the step of the last checkpoint that train.log reports as saved."""
    log = run.log.read_text() if run.log.exists() else ""
    return max((int(step) for step in re.findall(r"saved step-(\d+)", log)), default=0)


def count_starts(run: RunDirectory) -> int:
    """Return how often the training loop has started, from train.log."""
    return run.log.read_text().count("run directory") if run.log.exists() else 0


def wait_for(condition: Callable[[], bool], child: Any) -> None:
    while child.is_alive() and not condition():
        time.sleep(0.002)


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_resumes_exactly(kills: int, small_text: Path, tmp_path: Path) -> None:
    generator = random.Random(kills)
    overrides = (
        "model.dropout=0.3",
        f"trainer.max_steps={60 * kills}",
        "trainer.eval_every=50",
        "trainer.save_every=5",
    )
    config = small_config(small_text, *overrides, "trainer.log_every=1", "size.n_layers=1")
    expected_rows, expected_state = uninterrupted(config, tmp_path / "whole")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    n_in_loop = 0
    for kill in range(kills):
        n_starts = count_starts(run)
        moment = ("start", "loop", "save", "save")[kill % 4]
        marker = tmp_path / f"saving-{kill}"
        if moment == "save":
            arguments = (config, run.path, marker, generator.randint(1, 20))
            child = FORKS.Process(target=train_and_block_in_a_save, args=arguments)
        else:
            child = FORKS.Process(target=train_in_child, args=(config, run.path))
        child.start()
        if moment == "start":
            time.sleep(generator.uniform(0, 0.5))
        elif moment == "loop":
            wait_for(lambda n_starts=n_starts: count_starts(run) > n_starts, child)
            time.sleep(generator.uniform(0, 0.2))
        else:
            wait_for(marker.exists, child)
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, run.path.with_suffix(".errors").read_text()
        if moment == "save":
            assert list(run.checkpoints.glob(".step-*.tmp")), "it was killed in the middle of a save"
        n_in_loop += count_starts(run) > n_starts
        found, damaged = checkpoint.newest(run.checkpoints)
        assert damaged == []
        assert (found.step if found else 0) >= last_announced(run)
    assert n_in_loop >= kills // 2
    assert train(config, run).summary.status == "completed"
    assert untimed_rows(run) == expected_rows
    assert is_same_state(final_state(run), expected_state)
