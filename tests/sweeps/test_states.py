"""How far a job is, as its run directory tells."""

from pathlib import Path

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary, write_summary
from nanolm.sweeps.states import State, read_run
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def state_of(run: RunDirectory, max_steps: int = 4) -> State:
    return read_run(run, max_steps).state


def test_a_run_from_nothing_to_its_end(run: RunDirectory, small_text: Path) -> None:
    config = make_config(*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=4", "model=bigram")
    assert state_of(run) is State.new
    seen = []

    def look(step: int, loss: float) -> bool:
        seen.extend([read_run(run, 4).state, read_run(run, 4, looks_at_lock=False).state])
        return False

    with run.claim():
        train(config, run, should_prune=look, quiet=True)
    assert seen == [State.running, State.cut_off]
    report = read_run(run, 4)
    assert (report.state, report.error) == (State.completed, "")
    assert report.value == run.read_summary().best_val_loss
    assert state_of(run, max_steps=5) is State.cut_off
    beyond = read_run(run, 3)
    assert (beyond.state, beyond.value) == (State.failed, None)
    assert "trained on to step 4, and the sweep asks for 3" in beyond.error
    run.config.unlink()
    assert state_of(run) is State.new, "a run that nobody can read is trained again"


@pytest.mark.parametrize("status", ["diverged", "pruned", "interrupted", "failed"])
def test_how_a_run_ended_is_in_its_summary(status: str, run: RunDirectory) -> None:
    run.path.mkdir()
    write_summary(run.summary, Summary(status=status, step=2, error="no memory"))
    report = read_run(run, 4)
    assert report.state is State(status)
    assert report.error == ("no memory" if status == "failed" else "")
    with run.claim():
        assert state_of(run) is State.running


def test_a_run_that_never_began_has_failed_when_it_says_why(run: RunDirectory) -> None:
    run.path.mkdir()
    run.error.write_text("there is no file book.txt\n")
    assert read_run(run, 4).error == "there is no file book.txt"
    assert state_of(run) is State.failed
    run.error.unlink()
    run.summary.write_text("{")
    assert state_of(run) is State.failed
    assert "summary.json is damaged" in read_run(run, 4).error
