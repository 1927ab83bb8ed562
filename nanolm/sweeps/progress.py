"""The progress of a sweep: a status line on a terminal, and one line for each job that ends.

A thread reads it from the run directories, so jobs of this process, of others and of other machines look the same.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from tqdm import tqdm

from nanolm.analysis.comparability import incomparable
from nanolm.runs.metrics import read_last_step
from nanolm.sweeps.planning import Job, comparison_metric
from nanolm.sweeps.states import DONE, Report, State, read_job
from nanolm.terminal import visible
from nanolm.wording import format_estimate

# Seconds between two updates.
INTERVAL = 0.5

# The remaining time is estimated once this much is done, in jobs or fractions of one.
MIN_PROGRESS = 0.1

# States that a job does not leave on its own, and those that do not end with a job to do.
ENDED = frozenset({*DONE, State.pruned, State.failed, State.interrupted})
FINISHED = ENDED - {State.interrupted}


class Progress:
    """Shows the progress of jobs.

    Args:
        n_jobs: number of jobs of the sweep.
        file: where to print; stderr unless given. Only a terminal has a status line, in its last row.
        clock: returns seconds, for the estimate of the remaining time.
    """

    def __init__(self, n_jobs: int, file: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.n_jobs = n_jobs
        self._file = file or sys.stderr
        is_hidden = not self._file.isatty()
        shown = "sweep |{bar:6}| {desc}"
        self._bar = tqdm(
            total=n_jobs, file=self._file, bar_format=shown, leave=False, dynamic_ncols=True, disable=is_hidden
        )
        self._clock = clock
        self._start_time = clock()
        self._jobs: dict[str, Job] = {}
        self._reports: dict[str, Report] = {}
        self._modified: dict[str, tuple[int, ...]] = {}
        self._fractions_at_start: dict[str, float] = {}
        self._failed: set[str] = set()
        self._metric = "best_val_loss"
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._update_regularly, daemon=True)

    def start(self) -> None:
        """Start the thread that updates the progress."""
        self._thread.start()

    def stop(self) -> None:
        """Update once more, and remove the status line."""
        self._is_stopped.set()
        self._thread.join()
        self._bar.close()

    def add(self, jobs: Sequence[Job], reports: Mapping[str, Report]) -> None:
        """Add jobs with their states, by key, before they are run."""
        with self._lock:
            for job in jobs:
                self._jobs[job.key] = job
                self._reports[job.key] = reports[job.key]
                self._fractions_at_start[job.key] = self._fraction(job, reports[job.key])
                self._modified[job.key] = _modification_times(job)
            self._metric = comparison_metric(list(self._jobs.values()))

    def update(self) -> None:
        """Read the states of the jobs, and print those that ended since the last update."""
        with self._lock:
            for key, job in self._jobs.items():
                if (modified := _modification_times(job)) == self._modified[key]:
                    continue
                self._modified[key] = modified
                before, report = self._reports[key], read_job(job, check_lock=False)
                if report.state is State.unfinished and report.summary.status == "running":
                    report = Report(State.running, report.summary)
                self._reports[key] = report
                if report.state in ENDED and before.state not in DONE:
                    self._print(job, report)
            if not self._bar.disable:
                self._bar.n = self._count(*FINISHED)
                self._bar.set_description_str(self.status_line())

    def report_failure(self, job: Job, report: Report) -> None:
        """Print the failure of a job, unless it was found in its directory: it cannot be written to a full disk."""
        with self._lock:
            self._reports[job.key] = report
            self._modified[job.key] = _modification_times(job)
            self._print(job, report)

    def _print(self, job: Job, report: Report) -> None:
        """Print the line of a job that ended; of a job that failed, once."""
        if report.state is State.failed:
            if job.key in self._failed:
                return
            self._failed.add(job.key)
        self.announce(self._describe(job, report))

    def show(self, text: str) -> None:
        """Print a message above the status line of a terminal; nothing elsewhere."""
        if not self._bar.disable:
            self.announce(text)

    def announce(self, text: str) -> None:
        """Print a message, above the status line of a terminal."""
        self._bar.write(visible(text, multiline=True), file=self._file)

    def status_line(self) -> str:
        """Return the number of jobs in each state, the remaining time and the best loss."""
        done, failed = self._count(*DONE, State.pruned), self._count(State.failed)
        running = self._count(State.running)
        parts = [f"{done}/{self.n_jobs} done", f"{running} running"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{self.n_jobs - done - failed - running} pending"]
        parts += [f"{format_estimate(seconds)} left"] if (seconds := self.seconds_left()) is not None else []
        unit = " bits/byte" if self._metric == "bits_per_byte" else ""
        parts += [f"best {best:.4f}{unit}"] if (best := self.best()) is not None else []
        return ", ".join(parts)

    def best(self) -> float | None:
        """Return the lowest loss so far, in nats per token, or in bits per byte if the jobs' tokens differ."""
        done = [report.summary for report in self._reports.values() if report.state in DONE]
        values = [
            getattr(summary, self._metric)
            for summary, is_odd in zip(done, incomparable(done), strict=True)
            if not is_odd
        ]
        return min((value for value in values if value is not None), default=None)

    def seconds_left(self) -> float | None:
        """Estimate the remaining time from what was done since the start, steps of running jobs included."""
        fractions = {key: self._fraction(job, self._reports[key]) for key, job in self._jobs.items()}
        n_done = sum(fractions[key] - self._fractions_at_start[key] for key in fractions)
        if n_done < MIN_PROGRESS:
            return None
        return (self._clock() - self._start_time) / n_done * (self.n_jobs - sum(fractions.values()))

    def _fraction(self, job: Job, report: Report) -> float:
        """Return how much of a job is done, 0 to 1; a failed job is not run again and counts as 1."""
        if report.state in FINISHED:
            return 1.0
        if not job.run.metrics.exists():
            return 0.0
        max_steps = job.config.trainer.max_steps or report.summary.max_steps
        return min(1.0, read_last_step(job.run.metrics) / max_steps) if max_steps else 0.0

    def _count(self, *states: State) -> int:
        return sum(report.state in states for report in self._reports.values())

    def _describe(self, job: Job, report: Report) -> str:
        """Return the line for a job that ended."""
        if report.state is State.failed:
            return f"nanolm: {job.run.path} failed: {report.error}"
        if report.state is State.diverged:
            return f"nanolm: {job.run.path} diverged: {report.error or 'the loss is not finite'}"
        name = "val loss" if report.summary.best_val_sample is None else "estimated val loss"
        value = "" if report.value is None else f", {name} {report.value:.4f}"
        number = self._count(*FINISHED)
        return f"{job.run.path} {report.state.value}{value} ({number} of {self.n_jobs})"

    def _update_regularly(self) -> None:
        while not self._is_stopped.wait(INTERVAL):
            self.update()
        self.update()


def _modification_times(job: Job) -> tuple[int, ...]:
    """Return the modification times of the files that a job's state is read from; 0 for a missing file."""
    times = []
    for path in (job.run.summary, job.run.error, job.run.config, job.run.metrics):
        try:
            times.append(path.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)
