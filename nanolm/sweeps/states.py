"""How far a job is, read from its run directory: nothing else is remembered of a sweep."""

from __future__ import annotations

import dataclasses
import enum

from nanolm.errors import RunError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import Summary
from nanolm.sweeps.planning import Job


class State(enum.Enum):
    """new: nothing is there. cut_off: a run that a kill ended. running: a process writes to it at this moment."""

    completed = "completed"
    diverged = "diverged"
    pruned = "pruned"
    failed = "failed"
    interrupted = "interrupted"
    cut_off = "cut off"
    running = "running"
    new = "not begun"


# What is not run again. With the same settings a run that diverged would diverge at the same step: that is its result.
DONE = frozenset({State.completed, State.diverged})


@dataclasses.dataclass(frozen=True)
class Report:
    """A job as its directory has it.

    Attributes:
        summary: summary.json; empty where there is none.
        error: what ended it, of a failed or diverged one.
    """

    state: State
    summary: Summary
    error: str = ""

    @property
    def value(self) -> float | None:
        """The best validation loss, in nats a token; what a sweeper minimises."""
        return self.summary.best_val_loss


def read(job: Job, *, looks_at_lock: bool = True) -> Report:
    """How far a job is. Without a look at the lock, one that runs may read as cut off."""
    return read_run(job.run, job.config.trainer.max_steps, looks_at_lock=looks_at_lock)


def read_run(run: RunDirectory, max_steps: int, *, looks_at_lock: bool = True) -> Report:
    """As `read`, of a run directory and the steps that are asked of it."""
    try:
        summary = run.read_summary()
    except RunError as error:
        return Report(State.failed, Summary(), str(error))
    status = summary.status
    if goes_beyond(summary, max_steps):
        return Report(State.failed, Summary(), str(too_far(run, summary, max_steps)))
    if summary.is_complete(max_steps) and run.exists():
        return Report(State.completed, summary)
    if looks_at_lock and run.is_claimed():
        return Report(State.running, summary)
    text = read_error(run)
    if status in ("diverged", "pruned", "interrupted"):
        return Report(State(status), summary, text)
    if text or status == "failed":
        return Report(State.failed, summary, text or summary.error or "")
    return Report(State.cut_off if run.exists() else State.new, summary)


def goes_beyond(summary: Summary, max_steps: int) -> bool:
    """Whether a run was trained for longer than its job asks for, by hand: its figures are not the job's."""
    return not summary.is_fitted and summary.steps_done > max_steps


def too_far(run: RunDirectory, summary: Summary, max_steps: int) -> RunError:
    """What to say of such a run."""
    return RunError(
        f"it was trained on to step {summary.step:,}, and the sweep asks for {max_steps:,}",
        where=str(run.path),
        hint="move the folder elsewhere to train the job anew",
    )


def read_error(run: RunDirectory) -> str:
    """What ended the last attempt, or an empty string."""
    try:
        return run.error.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
