"""Runs that are asked to stop, and killed, at every kind of moment: what they go on to is what was never stopped."""

import os
import random
import re
import signal
import time
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

# Where a signal comes, and at which call of it: in the middle of an update, an evaluation, a save.
MOMENTS = {
    "forward": (trainer, "update", 15),
    "evaluation": (evaluation, "exact_loss", 2),
    "save": (checksummed, "_sync_file", 6),
}
SHORT = (
    "model.dropout=0.3",
    "trainer.max_steps=24",
    "trainer.eval_every=8",
    "trainer.save_every=6",
    "trainer.log_every=3",
)


def train_and_ask(config: Config, path: Path, moment: str, times: int) -> None:
    """Trains, and sends SIGTERM to this process at a moment, so many times."""
    module, name, left = MOMENTS[moment]
    function = getattr(module, name)

    def asked(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
                # Two that wait at once would be one.
                time.sleep(0.5)
        return function(*arguments, **keywords)

    setattr(module, name, asked)
    train_in_child(config, path)


def undisturbed(config: Config, path: Path) -> tuple[list[dict[str, Any]], Any]:
    """The rows and the final state of a run that nothing stops."""
    path.mkdir()
    run = RunDirectory(path)
    train(config, run)
    return untimed_rows(run), final_state(run)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("moment", MOMENTS)
def test_asked_to_stop_once_and_twice(moment: str, times: int, small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, *SHORT)
    whole = undisturbed(config, tmp_path / "whole")
    run = RunDirectory(tmp_path / "run")
    child = FORKS.Process(target=train_and_ask, args=(config, run.path, moment, times))
    child.start()
    child.join(100)
    assert child.exitcode == 143, run.path.with_suffix(".errors").read_text()
    found, damaged = checkpoint.newest(run.checkpoints)
    assert found is not None
    assert damaged == []
    summary = run.read_summary()
    if times == 1:
        assert (summary.status, summary.step) == ("interrupted", found.step)
        assert not list(run.checkpoints.glob(".*"))
    else:
        # Ended at once: before the save that the first one asked for, and in the middle of the one that was on.
        assert summary.status == "running"
        assert found.step == {"forward": 12, "evaluation": 12, "save": 6}[moment]
        assert bool(list(run.checkpoints.glob(".step-*.tmp"))) == (moment == "save")
    train(config, run)
    assert untimed_rows(run) == whole[0]
    assert is_same_state(final_state(run), whole[1])
    assert not list(run.checkpoints.glob(".*"))


def last_announced(run: RunDirectory) -> int:
    """The step of the last checkpoint that train.log says is on disk."""
    said = run.log.read_text() if run.log.exists() else ""
    return max((int(step) for step in re.findall(r"saved step-(\d+)", said)), default=0)


def wait_for_the_loop(run: RunDirectory, starts: int, is_alive: Any) -> None:
    """Until train.log says for the so manieth time that a loop begins."""
    while is_alive() and (not run.log.exists() or run.log.read_text().count("run directory") < starts):
        time.sleep(0.002)


@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_random_moments(kills: int, small_text: Path, tmp_path: Path) -> None:
    generator = random.Random(kills)
    line = ("model.dropout=0.3", f"trainer.max_steps={60 * kills}", "trainer.eval_every=50", "trainer.save_every=5")
    config = small_config(small_text, *line, "trainer.log_every=1", "size.n_layers=1")
    whole = undisturbed(config, tmp_path / "whole")
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    in_a_save = in_the_loop = 0
    for kill in range(kills):
        starts = run.log.read_text().count("run directory") if run.log.exists() else 0
        child = FORKS.Process(target=train_in_child, args=(config, run.path))
        child.start()
        moment = ("start", "loop", "save", "save")[kill % 4]
        if moment == "start":
            time.sleep(generator.uniform(0, 0.5))
        else:
            wait_for_the_loop(run, starts + 1, child.is_alive)
            time.sleep(generator.uniform(0, 0.2))
        while moment == "save" and child.is_alive() and not list(run.checkpoints.glob(".step-*.tmp")):
            pass
        if moment == "save":
            time.sleep(generator.uniform(0, 0.01))
        child.kill()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL, run.path.with_suffix(".errors").read_text()
        in_a_save += bool(list(run.checkpoints.glob(".step-*.tmp")))
        in_the_loop += run.log.exists() and run.log.read_text().count("run directory") > starts
        found, damaged = checkpoint.newest(run.checkpoints)
        assert damaged == []
        assert (found.step if found else 0) >= last_announced(run)
    assert in_the_loop >= kills // 2
    assert in_a_save >= kills // 8
    assert train(config, run).summary.status == "completed"
    assert untimed_rows(run) == whole[0]
    assert is_same_state(final_state(run), whole[1])
