"""trainer.early_stop: when it stops, what it says, and that resuming continues."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanolm.config.trainer import TrainerConfig
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import update_summary
from nanolm.sweeps.planning import job_key
from nanolm.training import early_stop
from nanolm.training.trainer import train, training
from tests.helpers import final_state, is_same_state, sigterm_at_step, small_config, untimed_rows

# A learning rate of zero never improves after the first evaluation.
LINE = (
    *("model=bigram", "optimizer=sgd", "optimizer.lr=1e-30", "scheduler=constant", "scheduler.warmup_steps=0"),
    *("trainer.eval_every=2", "trainer.save_every=3", "trainer.log_every=1", "trainer.max_steps=20"),
)


def new_run(path: Path) -> RunDirectory:
    path.mkdir()
    return RunDirectory(path)


@pytest.mark.parametrize(
    ("losses", "delta", "stalled"),
    [
        ([3.0, 2.0, 1.0], 0.0, 0),
        ([3.0, 3.0, 3.1], 0.0, 2),
        ([3.0, 2.9, 2.85, 2.81], 0.2, 3),
        ([3.0, 2.9, 2.85, 2.79], 0.2, 0),
        ([3.0, 3.5, 2.9, 2.95], 0.0, 1),
    ],
)
def test_improvements_exceed_the_delta(losses: list[float], delta: float, stalled: int) -> None:
    state: Any = SimpleNamespace(loss_to_beat=float("inf"), stalled=0)
    trainer = TrainerConfig(early_stop=2, early_stop_delta=delta)
    for state.val_loss in losses:
        early_stop.after_evaluation(state, trainer)
    assert state.stalled == stalled
    assert early_stop.has_stalled(state, trainer) == (stalled >= 2)
    assert not early_stop.has_stalled(state, TrainerConfig())


def test_run_stops_and_resuming_continues_it(small_text: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    config = small_config(small_text, *LINE, "trainer.early_stop=3")
    summary = train(config, run, quiet=True).summary
    # Improved at step 2, and not at 4, 6 and 8.
    assert (summary.status, summary.step, summary.max_steps) == ("stopped_early", 8, 20)
    assert "stops early at step 8: 3 evaluations in a row did not improve on" in run.log.read_text()
    assert train(config, run, quiet=True).summary.step == 14
    # Killed right after it was resumed: it continues as if it had not been.
    steps = training(config, run, quiet=True)
    next(steps)
    steps.close()
    assert train(config, run, quiet=True).summary.step == 20
    assert run.read_summary().status == "completed"
    whole = new_run(tmp_path / "whole")
    train(small_config(small_text, *LINE), whole, quiet=True)
    assert untimed_rows(run) == untimed_rows(whole)


@pytest.mark.slow
def test_interrupted_runs_stop_at_the_same_step(small_text: Path, tmp_path: Path) -> None:
    whole, parted = new_run(tmp_path / "whole"), new_run(tmp_path / "parted")
    config = small_config(small_text, *LINE, "trainer.early_stop=3")
    train(config, whole, quiet=True)
    with sigterm_at_step(5):
        train(config, parted, quiet=True)
    assert train(config, parted, quiet=True).summary.status == "stopped_early"
    assert untimed_rows(parted) == untimed_rows(whole)
    assert is_same_state(final_state(parted), final_state(whole))
    # Killed after its last checkpoint, and before it wrote its status.
    update_summary(parted.summary, status="running")
    assert train(config, parted, quiet=True).summary.status == "stopped_early"
    assert untimed_rows(parted) == untimed_rows(whole)


def test_jobs_of_a_sweep_differ_by_it(small_text: Path) -> None:
    plain = small_config(small_text)
    keys = {job_key(small_config(small_text, *line)) for line in ((), ("trainer.early_stop=3",))}
    assert len(keys) == 2
    assert job_key(plain) in keys
