"""The state of a job, read from its run directory: a sweep keeps no record of its own."""

from __future__ import annotations

import dataclasses
import enum
import itertools

from nanolm.config.budget import Budget, budget_of
from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary
from nanolm.sweeps.planning import Job
from nanolm.untrusted import read_inside, unreadable


class State(enum.Enum):
    """The state of a job.

    unfinished: a run that was killed, or that was trained for fewer steps than the job asks for; running: another
    process writes to the run at this moment.
    """

    completed = "completed"
    stopped_early = "stopped_early"
    diverged = "diverged"
    pruned = "pruned"
    failed = "failed"
    interrupted = "interrupted"
    unfinished = "unfinished"
    running = "running"
    new = "not started"


# Final states. A diverged run counts as a result: with the same settings it would diverge at the same step again.
DONE = frozenset({State.completed, State.stopped_early, State.diverged})


@dataclasses.dataclass(frozen=True)
class Report:
    """The state of a job and its result, pickled if the job ran in another process.

    Attributes:
        summary: contents of summary.json; empty if there is none.
        error: the error of a failed or diverged job.
        signal: number of the signal that interrupted the job in this attempt, or 0.
    """

    state: State
    summary: Summary = dataclasses.field(default_factory=Summary)
    error: str = ""
    signal: int = 0

    @property
    def value(self) -> float | None:
        """The best validation loss in nats per token, which a study minimises."""
        return self.summary.best_val_loss


def read_job(job: Job, *, check_lock: bool = True) -> Report:
    """Read the state of a job; without checking the lock, a running job may be reported as unfinished."""
    return read_run(job.run, budget_of(job.config.trainer), check_lock=check_lock)


def read_run(run: RunDirectory, budget: Budget, *, check_lock: bool = True) -> Report:
    """Read the state of a job from its run directory and the budget that the job asks for."""
    try:
        summary = read_job_summary(run, budget)
    except RunError as error:
        return Report(State.failed, error=str(error))
    if summary.is_complete(budget) and run.exists():
        return Report(State.completed, summary)
    if check_lock and run.is_claimed():
        return Report(State.running, summary)
    text = read_error(run)
    if summary.status in ("stopped_early", "diverged", "pruned", "interrupted"):
        return Report(State(summary.status), summary, text)
    if text or summary.status == "failed":
        return Report(State.failed, summary, text or summary.error or "")
    return Report(State.unfinished if run.exists() else State.new, summary)


def read_error(run: RunDirectory) -> str:
    """Read error.txt; empty if there is none, and the reason if it cannot be read."""
    try:
        return read_inside(run.error, run.path).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return str(unreadable(run.error, error))


def read_job_summary(run: RunDirectory, budget: Budget) -> Summary:
    """Read the summary of a job.

    Raises:
        RunError: it is damaged; or the run was trained by hand with another budget than the job asks for.
    """
    summary = run.read_summary()
    problem = ""
    if budget.in_steps and summary.steps_done > budget.value:
        problem = f"the run was trained to step {summary.step:,}, but the sweep asks for {budget.value:,}"
    elif not budget.in_steps and summary.budget not in ({}, budget.as_dict()):
        (other,) = itertools.starmap(Budget, summary.budget.items())
        problem = f"the run was trained with {other}, but the sweep asks for {budget}"
    if problem and not summary.is_fitted:
        raise RunError(
            problem,
            where=str(run.path),
            hint="move the folder elsewhere to train the job again",
        )
    return summary
