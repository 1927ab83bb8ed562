"""trainer.max_minutes: steps that fit into the time, fixed once, and a run that is the same as with as many steps."""

import dataclasses
from pathlib import Path

import pytest

from nanolm.config.yaml_io import load_yaml
from nanolm.errors import NanolmError
from nanolm.runs.directory import RunDirectory
from nanolm.training.dry_run import dry_run
from nanolm.training.minutes import Costs, duration, steps_within
from nanolm.training.trainer import train, training
from tests.helpers import final_state, is_same_state, make_config, sigterm_at_step, small_config, untimed_rows

LINE = (
    *("model=gpt2", "size.n_layers=1", "model.dropout=0.3", "optimizer=muon"),
    *("optimizer.momentum_warmup_fraction=0.5", "trainer.average_last=0.5", "trainer.eval_every=50"),
    *("trainer.save_every=5", "trainer.log_every=1", "trainer.batch_size_schedule=[[0.5,2]]"),
)


class Clock:
    """A clock that advances by a fixed amount whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        self.now += self.seconds
        return self.now


def never() -> float:
    raise AssertionError("nothing is to be measured")


def new_run(path: Path) -> RunDirectory:
    path.mkdir()
    return RunDirectory(path)


def test_steps_fill_the_time_with_evaluations_and_saves() -> None:
    config = make_config("trainer.eval_every=10", "trainer.save_every=10", "trainer.max_minutes=1")
    shape = (config.trainer.batch_size, config.size.context_length)
    costs = Costs({shape: 0.1}, evaluation=2.0, save=0.5, end=1.0)
    # Ten steps with an evaluation and a save take 3.5 s, and the last one has them in any case.
    assert steps_within(config, 0, 36.0, costs) == 100
    assert steps_within(config, 0, 35.9, costs) == 99
    assert steps_within(config, 95, 1 + 2 * 2.5 + 1.0, costs) == 105
    assert steps_within(config, 7, 3.5, costs) == 7


def test_every_shape_of_a_batch_has_its_own_time() -> None:
    line = ("trainer.batch_size_schedule=[[0.5,4]]", "trainer.batch_size=8", "trainer.eval_every=1000000")
    config = make_config(*line, "trainer.max_minutes=1", "trainer.save_every=1000000")
    length = config.size.context_length
    costs = Costs({(4, length): 0.1, (8, length): 0.3}, 0.0, 0.0, 0.0)
    found = steps_within(config, 0, 40.0, costs)
    assert found == 200
    trainer = dataclasses.replace(config.trainer, max_steps=found)
    assert duration(dataclasses.replace(config, trainer=trainer), 0, costs) == pytest.approx(40.0)


def test_run_is_that_of_as_many_steps_also_resumed(small_text: Path, tmp_path: Path) -> None:
    timed, counted = new_run(tmp_path / "timed"), new_run(tmp_path / "counted")
    config = small_config(small_text, *LINE, "trainer.max_minutes=0.05")
    with sigterm_at_step(7):
        train(config, timed, quiet=True, clock=Clock(0.05))
    summary = timed.read_summary()
    n_steps = summary.max_steps
    assert n_steps is not None
    assert (summary.status, summary.budget) == ("interrupted", {"max_minutes": 0.05})
    assert f"trainer.max_minutes=0.05: {n_steps} steps" in timed.log.read_text()
    assert f"trainer.max_steps={n_steps} repeats this run" in timed.log.read_text()
    train(config, timed, quiet=True, clock=lambda: 0.0)
    assert load_yaml(timed.config).trainer.max_steps is None
    train(small_config(small_text, *LINE, f"trainer.max_steps={n_steps}"), counted, quiet=True)
    assert timed.read_summary().status == "completed"
    assert untimed_rows(timed) == untimed_rows(counted)
    assert is_same_state(final_state(timed), final_state(counted))


def test_killed_before_a_checkpoint_keeps_its_steps(small_text: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    config = small_config(small_text, "model=bigram", "trainer.max_minutes=0.05", "trainer.save_every=1000")
    steps = training(config, run, quiet=True, clock=Clock(0.02))
    next(steps)
    steps.close()
    fixed = run.read_summary().max_steps
    train(config, run, quiet=True, clock=lambda: 0.0)
    assert (run.read_summary().max_steps, run.read_summary().step) == (fixed, fixed)


@pytest.mark.slow
def test_more_minutes_continue_a_run(small_text: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    line = ("model=bigram", "optimizer=sgd", "optimizer.momentum=0.9", "trainer.save_every=1000")
    train(small_config(small_text, *line, "trainer.max_minutes=0.05"), run, quiet=True, clock=Clock(0.05))
    before = run.read_summary().max_steps
    longer = small_config(small_text, *line, "trainer.max_minutes=1")
    train(longer, run, quiet=True, clock=Clock(0.5))
    after = run.read_summary()
    assert before is not None
    assert after.max_steps is not None
    assert after.step == after.max_steps > before


def test_time_that_is_too_short_is_refused(small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, "model=bigram", "trainer.max_minutes=0.05")
    for seconds, found in ((4.0, "is shorter than the start-up, with earlier"), (0.3, "and one step with its eval")):
        run = new_run(tmp_path / f"run{seconds}")
        with pytest.raises(NanolmError) as error:
            train(config, run, quiet=True, clock=Clock(seconds))
        assert found in error.value.found
        assert error.value.hint.startswith("trainer.max_minutes=")
        assert not run.exists()


@pytest.mark.slow
def test_dry_run_measures_the_steps(small_text: Path, tmp_path: Path) -> None:
    found = dry_run(small_config(small_text, "model=bigram", "trainer.max_minutes=0.1"), RunDirectory(tmp_path / "r"))
    assert found.budget.startswith("trainer.max_minutes=0.1: ")
    assert found.durations["steps"][0] > 1
