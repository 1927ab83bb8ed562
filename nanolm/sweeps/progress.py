"""How a sweep goes, while it goes: a line at the foot of a terminal, and one for each job that ends.

It is read from the run directories, by a thread, so that jobs of this process, of others and of other machines look
the same.
"""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from nanolm.analysis.comparison import odd_ones
from nanolm.runs.metrics import read_last_step
from nanolm.sweeps.planning import Job, measure
from nanolm.sweeps.states import DONE, Report, State, read
from nanolm.terminal import visible

# Seconds between two looks.
PACE = 0.5

# Jobs, or parts of one, that must be done before the time of the rest is guessed.
ENOUGH = 0.1

# States that a job does not leave by itself.
ENDED = frozenset({*DONE, State.pruned, State.failed, State.interrupted})


class Progress:
    """Shows jobs as they end.

    Args:
        n_jobs: how many there will be.
        file: where it is shown; stderr unless given.
        shows_line: whether there is a line at the foot; None: on a terminal.
    """

    def __init__(self, n_jobs: int, file: IO[str] | None = None, shows_line: bool | None = None) -> None:
        self.n_jobs = n_jobs
        self._file = file or sys.stderr
        self._shows_line = self._file.isatty() if shows_line is None else shows_line
        self._jobs: dict[str, Job] = {}
        self._reports: dict[str, Report] = {}
        self._marks: dict[str, tuple[int, ...]] = {}
        self._fractions: dict[str, float] = {}
        self._at_start: dict[str, float] = {}
        self._figure = "best_val_loss"
        self._began = time.monotonic()
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, daemon=True)
        self._bar: Any = None

    def start(self) -> None:
        """Begins to look."""
        if self._shows_line:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.n_jobs,
                file=self._file,
                bar_format="sweep |{bar:6}| {desc}",
                leave=False,
                dynamic_ncols=True,
            )
        self._thread.start()

    def stop(self) -> None:
        """Looks a last time."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bar is not None:
            self._bar.close()

    def watch(self, jobs: Sequence[Job], reports: dict[str, Report]) -> None:
        """Takes up jobs, as they stand before they are run."""
        with self._turn:
            for job in jobs:
                self._jobs[job.key] = job
                self._reports[job.key] = reports[job.key]
                self._at_start[job.key] = self._fraction(job, reports[job.key])
                self._marks[job.key] = _mark(job)
            self._figure = measure(list(self._jobs.values()))

    def look(self) -> None:
        """Reads how the jobs stand, and says what has ended since the last look."""
        with self._turn:
            for key, job in self._jobs.items():
                if (mark := _mark(job)) == self._marks[key]:
                    continue
                self._marks[key] = mark
                before, report = self._reports[key], read(job, looks_at_lock=False)
                if report.state is State.cut_off and report.summary.status == "running":
                    report = Report(State.running, report.summary)
                self._reports[key] = report
                if report.state in ENDED and (before.state not in DONE):
                    self._say(self._ended(job, report))
            if self._bar is not None:
                self._bar.n = self._count(*ENDED - {State.interrupted})
                self._bar.set_description_str(self.line())

    def line(self) -> str:
        """Everything that counts, in a line."""
        done, failed = self._count(*DONE, State.pruned), self._count(State.failed)
        running = self._count(State.running)
        parts = [f"{done}/{self.n_jobs} done", f"{running} running"]
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{self.n_jobs - done - failed - running} left"]
        parts += [f"{_in_words(left)} to go"] if (left := self.seconds_left()) is not None else []
        unit = " bits/byte" if self._figure == "bits_per_byte" else ""
        parts += [f"best {best:.4f}{unit}"] if (best := self.best()) is not None else []
        return ", ".join(parts)

    def best(self) -> float | None:
        """The lowest figure so far: nats a token, or bits a byte where jobs do not read the same tokens."""
        ended = [report.summary for report in self._reports.values() if report.state in DONE]
        compares = [not is_odd for is_odd in odd_ones(ended)]
        values = [getattr(summary, self._figure) for summary in itertools.compress(ended, compares)]
        return min((value for value in values if value is not None), default=None)

    def seconds_left(self) -> float | None:
        """From how much of all the jobs was done since the start, steps of those that run included."""
        if not self._jobs:
            return None
        fractions = {key: self._fraction(job, self._reports[key]) for key, job in self._jobs.items()}
        gone = sum(fractions[key] - self._at_start[key] for key in fractions)
        if gone < ENOUGH:
            return None
        return (time.monotonic() - self._began) / gone * (self.n_jobs - sum(fractions.values()))

    def _fraction(self, job: Job, report: Report) -> float:
        """How much of a job is done, 0 to 1; one that failed is not to be done again."""
        if report.state in {*ENDED} - {State.interrupted}:
            return 1.0
        if not job.run.metrics.exists():
            return 0.0
        return min(1.0, read_last_step(job.run.metrics) / job.config.trainer.max_steps)

    def _count(self, *states: State) -> int:
        return sum(report.state in states for report in self._reports.values())

    def _ended(self, job: Job, report: Report) -> str:
        """The one line of a job that ended."""
        if report.state is State.failed:
            return f"nanolm: {job.run.path} failed: {report.error}"
        if report.state is State.diverged:
            return f"nanolm: {job.run.path} diverged: {report.error or 'the loss is not finite'}"
        value = "" if report.value is None else f", val loss {report.value:.4f}"
        number = self._count(*DONE, State.pruned, State.failed)
        return f"{job.run.path} {report.state.value}{value} ({number} of {self.n_jobs})"

    def _say(self, text: str) -> None:
        text = visible(text, multiline=True)
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        else:
            print(text, file=self._file, flush=True)

    def _keep_looking(self) -> None:
        while not self._over.wait(PACE):
            self.look()
        self.look()


def _mark(job: Job) -> tuple[int, ...]:
    """What changes whenever a job's state does: the times of the files that it is read from."""
    found = []
    for path in (job.run.summary, job.run.error, job.run.config, job.run.metrics):
        try:
            found.append(path.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def _in_words(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
