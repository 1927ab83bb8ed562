"""The status of a sweep, read from its folder while it runs or afterwards, on any machine that sees it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nanolm.analysis.comparability import incomparable
from nanolm.errors import RunError
from nanolm.files import user_path
from nanolm.lock_holders import Holder
from nanolm.runs.directory import RunDirectory, display_path
from nanolm.runs.metrics import read_last_row
from nanolm.runs.summary import Summary
from nanolm.sweeps.launchers.gpus import gpus_of_process
from nanolm.sweeps.planning import KEY_LENGTH
from nanolm.sweeps.states import DONE, State, read_error
from nanolm.wording import format_estimate

# The end of the name of each job's folder.
JOB = re.compile(rf".*-[0-9a-f]{{{KEY_LENGTH}}}")
# States of a summary.
ENDED = {state.value: state for state in (*DONE, State.pruned, State.interrupted)}
# States in which a job is to be run, or run again.
LEFT = (State.new, State.unfinished, State.interrupted)


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """The status of a job.

    Attributes:
        name: of its folder.
        step: optimizer steps done, those after the last checkpoint included.
        seconds: training time so far.
        error: why it failed or diverged.
        holder: the process that runs it.
        running_for: seconds since that process began with it.
        gpu: the GPU of that process, if it was started with one and runs on this machine.
    """

    name: str
    state: State
    summary: Summary
    step: int = 0
    seconds: float = 0.0
    error: str = ""
    holder: Holder | None = None
    running_for: float | None = None
    gpu: str = ""

    @property
    def seconds_left(self) -> float | None:
        """The time that a run needs to its last step at its speed so far."""
        max_steps = self.summary.max_steps
        if not max_steps or not self.step or not self.seconds:
            return None
        return self.seconds / self.step * max(0, max_steps - self.step)


@dataclasses.dataclass(frozen=True)
class SweepStatus:
    """The status of a sweep.

    Attributes:
        folder: of the sweep.
        jobs: its jobs, by name.
    """

    folder: Path
    jobs: tuple[JobStatus, ...]

    def of(self, *states: State) -> list[JobStatus]:
        """Return the jobs in one of the states."""
        return [job for job in self.jobs if job.state in states]

    @property
    def metric(self) -> str:
        """The metric that compares the jobs: bits per byte if their tokens differ, else nats per token."""
        tokens = {(job.summary.corpus, job.summary.tokenizer) for job in self.jobs if job.summary.tokenizer}
        return "best_val_loss" if len(tokens) <= 1 else "bits_per_byte"

    @property
    def best(self) -> JobStatus | None:
        """The job with the lowest loss among the comparable ones that are done."""
        done = self.of(*DONE)
        fair = [
            job
            for job, is_odd in zip(done, incomparable([job.summary for job in done]), strict=True)
            if not is_odd and getattr(job.summary, self.metric) is not None
        ]
        return min(fair, key=lambda job: getattr(job.summary, self.metric), default=None)

    @property
    def seconds_left(self) -> float | None:
        """The time until all jobs are done with as many at a time as now; None if none runs, or none tells how long.

        A job that was not started counts as the mean of those that are done or run.
        """
        running = self.of(State.running)
        known = [left for job in running if (left := job.seconds_left) is not None]
        totals = [job.seconds for job in self.of(*DONE) if job.seconds]
        totals += [job.seconds + left for job in running if (left := job.seconds_left) is not None]
        if not running or not totals:
            return None
        mean = sum(totals) / len(totals)
        waiting = sum(mean if (left := job.seconds_left) is None else left for job in self.of(*LEFT))
        work = sum(known) + mean * (len(running) - len(known)) + waiting
        return max(work / len(running), *known, 0.0)

    def describe(self, now: datetime.datetime) -> str:
        """Describe the progress: "12 of 40 jobs done, 2 running, 1 failed, 25 left, about 12 min left, until 14:20"."""
        running, failed = self.of(State.running), self.of(State.failed)
        parts = [
            f"{len(self.of(*DONE, State.pruned))} of {len(self.jobs)} jobs done",
            f"{len(running)} running",
            *[f"{len(failed)} failed"] * bool(failed),
            f"{len(self.of(*LEFT))} left",
            describe_left(self, now),
        ]
        return ", ".join(part for part in parts if part)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        left, best = self.seconds_left, self.best
        counts = collections.Counter(job.state.value for job in self.jobs)
        return {
            "folder": str(self.folder),
            "jobs": len(self.jobs),
            "counts": {state.value: counts[state.value] for state in State},
            "done": len(self.of(*DONE, State.pruned)),
            "left": len(self.of(*LEFT)),
            "running": [_running(job) for job in self.of(State.running)],
            "failed": [{"run": job.name, "error": job.error} for job in self.of(State.failed, State.diverged)],
            "best": best and {"run": best.name, "metric": self.metric, "value": getattr(best.summary, self.metric)},
            "seconds_left": left,
        }


def sweep_folders(runs: Iterable[Path]) -> list[Path]:
    """Return the folders of the sweeps that runs are jobs of, each once."""
    return sorted({run.parent for run in runs if JOB.fullmatch(run.name)})


def read_status(folder: str) -> SweepStatus:
    """Read the status of a sweep.

    Raises:
        RunError: there is no such folder, or it has no jobs.
    """
    path = display_path(user_path(folder))
    try:
        names = sorted(entry.name for entry in path.iterdir() if JOB.fullmatch(entry.name) and entry.is_dir())
    except OSError as error:
        raise RunError(
            f"there is no sweep: {error.strerror}", where=folder, hint="name its folder, such as outputs/sweep"
        ) from error
    if not names:
        raise RunError(
            "the folder has no jobs of a sweep",
            where=folder,
            hint="name the folder that `nanolm train -m` printed; `nanolm runs` lists single runs",
        )
    return SweepStatus(path, tuple(read_job_status(path / name) for name in names))


def read_job_status(folder: Path, now: float | None = None) -> JobStatus:
    """Read the status of a job.

    Args:
        now: seconds since 1970; None: the present.
    """
    run = RunDirectory(folder)
    try:
        summary = run.read_summary()
        row = read_last_row(run.metrics)
    except RunError as error:
        return JobStatus(folder.name, State.failed, Summary(), error=error.found)
    step = max(summary.steps_done, row.step if row else 0)
    seconds = max(summary.seconds or 0.0, (row and row.seconds) or 0.0)
    text, holder, running_for, gpu = "", None, None, ""
    if run.is_claimed():
        state, holder = State.running, run.holder()
        if holder is not None and holder.host == socket.gethostname():
            gpu = gpus_of_process(holder.process)
        with contextlib.suppress(ValueError):
            since = datetime.datetime.fromisoformat(holder.since).timestamp() if holder else 0.0
            running_for = (time.time() if now is None else now) - since if since else None
    else:
        text = read_error(run) or summary.error or ""
        state = ENDED.get(summary.status or "", State.failed if text else State.new)
        if state is State.new and run.exists():
            state = State.unfinished
    return JobStatus(folder.name, state, summary, step, seconds, text, holder, running_for, gpu)


def _running(job: JobStatus) -> dict[str, Any]:
    return {
        "run": job.name,
        "step": job.step,
        "max_steps": job.summary.max_steps,
        "host": job.holder and job.holder.host,
        "process": job.holder and job.holder.process,
        "gpu": job.gpu or None,
        "seconds": job.running_for,
        "seconds_left": job.seconds_left,
    }


def describe_left(status: SweepStatus, now: datetime.datetime) -> str:
    """Describe the estimated end: "about 12 min left, until 14:20"; empty if it is unknown."""
    if (seconds := status.seconds_left) is None:
        return ""
    end = now + datetime.timedelta(seconds=seconds)
    shown = end.strftime("%H:%M" if end.date() == now.date() else "%Y-%m-%d %H:%M")
    return f"about {format_estimate(seconds)} left, until {shown}"
