"""The results of trials: reported losses, pruning, and the end of a trial."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path

from optuna.trial import TrialState

from nanolm.config.budget import Budget
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.records import encode_row
from nanolm.runs.summary import Summary, write_summary
from nanolm.sweeps.optuna.journal_entries import FOLDER
from nanolm.sweeps.optuna.samplers import FAILED
from nanolm.sweeps.optuna.study import OpenStudy, open_study, register_sweeper, take_trials
from nanolm.sweeps.optuna.trials import find_pruner, finish_trial, report_losses, trial_pruner
from nanolm.sweeps.states import read_run


def run_with(path: Path, status: str, losses: dict[int, float], step: int | None = None) -> RunDirectory:
    """Write the files of a run that a study reads."""
    path.mkdir(parents=True)
    run = RunDirectory(path)
    run.config.write_text("{}")
    rows = [MetricsRow(step=step, split="val", loss=loss) for step, loss in losses.items()]
    run.metrics.write_bytes(b"".join(map(encode_row, rows)))
    summary = Summary(status=status, step=step or max(losses), best_val_loss=min(losses.values()))
    write_summary(run.summary, summary)
    return run


def test_trial_pruner_decides_once_for_each_loss(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        assert take_trials(study, sweeper, 3) == [0, 1, 2]
    run = RunDirectory(tmp_path / "run")
    assert not trial_pruner(study, 0, run)(10, 3.0), "the first one is the best so far"
    assert trial_pruner(study, 1, run)(10, 3.5)
    report_losses(study, 2, {10: 2.0})
    # Killed after the report and trained again: the decision is the same, although trial 2 is better by now.
    again = make_study()
    assert not trial_pruner(again, 0, run)(10, 99.0)
    assert again.trials()[0].intermediate_values == {10: 3.0}
    assert trial_pruner(again, 1, run)(10, 99.0)
    assert trial_pruner(again, 0, run)(30, 9.0) is False, "no other trial has reached step 30"
    assert trial_pruner(again, 2, run)(30, 9.5)
    assert trial_pruner(again, 0, run)(90, 99.0) is False, "a trial is not pruned at its end"


def test_trial_pruner_decides_on_a_loss_reported_before(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 3)
    run = RunDirectory(tmp_path / "run")
    report_losses(study, 0, {10: 3.0})
    report_losses(study, 1, {10: 3.5})
    assert not trial_pruner(study, 0, run)(10, 3.0)
    assert trial_pruner(study, 1, run)(10, 3.5)


def test_trial_pruner_reports_earlier_losses_of_the_run(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 1)
    run = run_with(tmp_path / "run", "interrupted", {10: 3.0, 20: 2.5, 30: 2.4})
    trial_pruner(study, 0, run)(40, 2.3)
    assert study.trials()[0].intermediate_values == {10: 3.0, 20: 2.5, 30: 2.4, 40: 2.3}


def finish(study: OpenStudy, number: int, run: RunDirectory) -> bool:
    return finish_trial(study, number, run, read_run(run, Budget("max_steps", study.max_steps)))


def test_finish_trial_tells_the_study_each_kind_of_result(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 6)
    assert finish(study, 0, run_with(tmp_path / "a", "completed", {30: 2.0, 60: 1.5, 90: 1.7}))
    assert finish(study, 1, run_with(tmp_path / "b", "pruned", {10: 4.0}))
    assert finish(study, 2, run_with(tmp_path / "c", "diverged", {10: 4.0}))
    assert not finish(study, 3, run_with(tmp_path / "d", "interrupted", {10: 3.0}))
    assert not finish(study, 4, RunDirectory(tmp_path / "e"))
    assert not finish(study, 5, run_with(tmp_path / "f", "completed", {30: 2.0})), "30 steps of 90"
    trials = study.trials()
    ended = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.state for trial in trials] == [*ended, *[TrialState.RUNNING] * 3]
    assert [trial.value for trial in trials[:3]] == [1.5, 4.0, float("inf")]
    assert trials[0].intermediate_values == {30: 2.0, 60: 1.5, 90: 1.7}
    assert make_study().study.best_trial.number == 0


def test_finish_trial_needs_a_pruner_for_a_pruned_run(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study(pruner="none")
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 1)
    assert not finish(study, 0, run_with(tmp_path / "a", "pruned", {10: 2.0}))


def test_finish_trial_keeps_the_error_of_a_failure(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 1)
    run = run_with(tmp_path / "a", "running", {10: 2.0})
    run.error.write_text("no memory is left\n")
    assert not finish(study, 0, run)
    assert study.trials()[0].user_attrs[FAILED] == "no memory is left"


def test_find_pruner_finds_the_trial_of_a_run(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study()
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 2)
    study.set_attribute(1, FOLDER, "mine")
    # As in another process.
    opener = functools.partial(open_study, tmp_path, "study", study.settings, study.space, 90)
    factory = pickle.loads(pickle.dumps(functools.partial(find_pruner, opener)))  # noqa: S301
    should_prune = factory(RunDirectory(tmp_path / "mine"))
    assert should_prune is not None
    should_prune(10, 3.0)
    assert study.trials()[1].intermediate_values == {10: 3.0}
    assert factory(RunDirectory(tmp_path / "other")) is None
    study.study.tell(1, 3.0)
    assert factory(RunDirectory(tmp_path / "mine")) is None
