"""The results of trials: losses are reported to the study, which decides on pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from optuna.trial import TrialState

from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, val_losses
from nanolm.sweeps.optuna.journal_entries import FOLDER, KEPT, PRUNED
from nanolm.sweeps.optuna.samplers import FAILED
from nanolm.sweeps.optuna.study import OpenStudy
from nanolm.sweeps.states import Report, State
from nanolm.training.stop import ShouldPrune


def find_pruner(open_in_job: Callable[[], OpenStudy], run: RunDirectory) -> ShouldPrune | None:
    """Return the pruner of a run, or None if no open trial has its folder.

    Args:
        open_in_job: opens the study in the process of the job.
    """
    opened = open_in_job()
    for trial in opened.trials():
        if trial.user_attrs.get(FOLDER) == run.path.name and trial.state == TrialState.RUNNING:
            return trial_pruner(opened, trial.number, run)
    return None


def trial_pruner(opened: OpenStudy, number: int, run: RunDirectory) -> ShouldPrune:
    """Return the pruner of a trial, to be called after each evaluation with the step and the validation loss.

    Each loss is reported once and decided on once, whichever process trains the trial and however often it is killed.
    """
    earlier = val_losses(run.read_metrics(VAL)) if run.exists() else {}

    def should_prune(step: int, loss: float) -> bool:
        report_losses(
            opened, number, {**{before: value for before, value in earlier.items() if before < step}, step: loss}
        )
        trial = opened.trials()[number]
        if trial.user_attrs.get(PRUNED) is not None:
            return step >= trial.user_attrs[PRUNED]
        if step <= trial.user_attrs.get(KEPT, 0) or step >= opened.max_steps:
            return False
        is_pruned = opened.study.pruner.prune(opened.study, trial)
        opened.set_attribute(number, PRUNED if is_pruned else KEPT, step)
        return is_pruned

    return should_prune


def report_losses(opened: OpenStudy, number: int, losses: Mapping[int, float]) -> None:
    """Report the validation losses of a trial, by step; losses that the study has already are kept."""
    known = opened.trials()[number].intermediate_values
    for step, loss in sorted(losses.items()):
        if step not in known:
            opened.storage.set_trial_intermediate_value(opened.trial_id(number), step, loss)


def finish_trial(opened: OpenStudy, number: int, run: RunDirectory, outcome: Report) -> bool:
    """Tell the study the result of a run.

    A diverged run has an infinite loss. In a study without a pruner, a run that another study pruned has no result.

    Returns:
        Whether the trial is over; False if the run has no result yet, so the trial stays open.
    """
    if outcome.state in (State.completed, State.stopped_early):
        report_losses(opened, number, val_losses(run.read_metrics(VAL)))
        opened.study.tell(number, outcome.value)
    elif outcome.state is State.diverged:
        opened.study.tell(number, math.inf)
    elif outcome.state is State.pruned and opened.settings.prunes:
        report_losses(opened, number, val_losses(run.read_metrics(VAL)))
        opened.study.tell(number, state=TrialState.PRUNED)
    else:
        if outcome.state is State.failed:
            opened.set_attribute(number, FAILED, outcome.error or "failed")
        return False
    return True
