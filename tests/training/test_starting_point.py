import shutil
from pathlib import Path

import pytest

from nanolm.compose import ComposedCommand, compose_command
from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from nanolm.training.starting_point import StartingPoint, forked, starting_point
from nanolm.training.trainer import train
from tests.helpers import small_config, untimed_rows

LINE = (
    "model=bigram",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.sample_tokens=0",
)


def fork_of(line: ComposedCommand) -> StartingPoint:
    assert line.launch.resumed_path is not None
    return forked(line.launch.resumed_path, line)


@pytest.fixture
def run(small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("R")
    run.path.mkdir()
    train(small_config(small_text, *LINE), run, quiet=True)
    return run


def test_fork_of_an_edited_run_is_refused(run: RunDirectory) -> None:
    run.config.write_text(run.config.read_text().replace("seed: 1337", "seed: 7"))
    line = compose_command(["resume=R", "fork=true", "trainer.max_steps=8"])
    with pytest.raises(RunError, match=r"seed: 1337 -> 7\n"):
        fork_of(line)
    line = compose_command(["resume=R"])
    with pytest.raises(RunError, match=r"seed: 1337 -> 7\n"):
        starting_point(run, line)
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match="is not the one in summary"):
        starting_point(run, line)


def test_fork_of_a_run_without_checkpoints_is_refused(run: RunDirectory) -> None:
    line = compose_command(["resume=R", "fork=true", "trainer.max_steps=8"])
    shutil.rmtree(run.checkpoints)
    with pytest.raises(RunError, match=r"no checkpoint to start from[\s\S]*take the checkpoints directory from a copy"):
        fork_of(line)


def test_fork_without_checkpoint_starts_from_its_parent_again(run: RunDirectory) -> None:
    line = compose_command(["resume=R", "fork=true", "trainer.max_steps=8", "optimizer.lr=0.1"])
    fork = RunDirectory("F")
    fork.path.mkdir()
    task = fork_of(line)
    train(task.config, fork, parent=task.parent, quiet=True)
    expected = untimed_rows(fork)
    # As a kill before the first save leaves it.
    update_summary(fork.summary, status="running", has_checkpoint=False, step=None)
    shutil.rmtree(fork.checkpoints)
    fork.metrics.write_bytes(b"")
    line = compose_command(["resume=F"])
    again = starting_point(fork, line)
    assert again.parent is not None
    train(again.config, fork, parent=again.parent, quiet=True)
    assert untimed_rows(fork) == expected


def test_choices_without_a_summary_come_from_the_config(run: RunDirectory) -> None:
    run.summary.unlink()
    line = compose_command(["resume=R", "trainer.max_steps=8"])
    assert starting_point(run, line).choices["model"] == "bigram"


def test_lost_summary_of_a_run_without_checkpoints_is_refused(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoints)
    run.summary.unlink()
    run.metrics.write_bytes(b"")
    with pytest.raises(RunError, match="its summary does not say whether it is a fork"):
        starting_point(run, compose_command(["resume=R", "trainer.max_steps=8"]))
