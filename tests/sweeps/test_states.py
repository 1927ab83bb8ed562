"""The state of a job, read from its run directory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.config.budget import Budget
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary, write_summary
from nanolm.sweeps.states import State, read_run
from nanolm.training.stop import StopRequest
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def state_of(run: RunDirectory, max_steps: int = 4) -> State:
    return read_run(run, Budget("max_steps", max_steps)).state


def test_read_run_follows_a_run_from_start_to_end(run: RunDirectory, small_text: Path) -> None:
    config = make_config(*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=4", "model=bigram")
    assert state_of(run) is State.new
    seen = []

    def look(step: int, loss: float) -> bool:
        seen.extend(
            [read_run(run, Budget("max_steps", 4)).state, read_run(run, Budget("max_steps", 4), check_lock=False).state]
        )
        return False

    with run.claim():
        train(config, run, stop=StopRequest(look), quiet=True)
    assert seen == [State.running, State.unfinished]
    report = read_run(run, Budget("max_steps", 4))
    assert (report.state, report.error) == (State.completed, "")
    assert report.value == run.read_summary().best_val_loss
    assert state_of(run, max_steps=5) is State.unfinished
    beyond = read_run(run, Budget("max_steps", 3))
    assert (beyond.state, beyond.value) == (State.failed, None)
    assert "trained to step 4, but the sweep asks for 3" in beyond.error
    run.config.unlink()
    assert state_of(run) is State.new, "a run without settings is trained again"


@pytest.mark.parametrize("status", ["diverged", "pruned", "interrupted", "failed"])
def test_read_run_returns_the_status_of_the_summary(status: str, run: RunDirectory) -> None:
    run.path.mkdir()
    write_summary(run.summary, Summary(status=status, step=2, error="no memory"))
    report = read_run(run, Budget("max_steps", 4))
    assert report.state is State(status)
    assert report.error == ("no memory" if status == "failed" else "")
    with run.claim():
        assert state_of(run) is State.running


def test_read_run_reports_an_error_file_as_failure(run: RunDirectory) -> None:
    run.path.mkdir()
    run.error.write_text("there is no file book.txt\n")
    assert read_run(run, Budget("max_steps", 4)).error == "there is no file book.txt"
    assert state_of(run) is State.failed
    run.error.unlink()
    run.summary.write_text("{")
    assert state_of(run) is State.failed
    assert "summary.json is damaged" in read_run(run, Budget("max_steps", 4)).error


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (Path.mkdir, "error.txt cannot be read: it is a folder"),
        (os.mkfifo, "error.txt cannot be read: it is a FIFO"),
        (lambda path: path.symlink_to("/etc/hostname"), "error.txt cannot be read: it is a link to /etc/hostname"),
        (lambda path: path.write_bytes(b"x" * 2_000_000), "error.txt cannot be read: it has 2,000,000 bytes"),
        (lambda path: path.write_bytes(b"\xff broken"), "\ufffd broken"),
    ],
)
def test_read_run_accepts_any_error_file(make: Callable[[Path], object], expected: str, run: RunDirectory) -> None:
    run.path.mkdir()
    make(run.error)
    report = read_run(run, Budget("max_steps", 4))
    assert report.state is State.failed
    assert expected in report.error
