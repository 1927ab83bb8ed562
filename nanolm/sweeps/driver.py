"""The driver of a sweep: passes jobs to a launcher until all are done, and shares them with other processes."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from nanolm import signals
from nanolm.errors import NanolmError, SettingsError, is_disk_failure, write_failure
from nanolm.files import write_text
from nanolm.runs.directory import display_path
from nanolm.signals import Stopped
from nanolm.sweeps.handover import MAX_ATTEMPTS, LostJob, PlannedJobLoader, job_overrides
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.launchers import concurrency
from nanolm.sweeps.planning import Job
from nanolm.sweeps.progress import Progress
from nanolm.sweeps.states import Report, State, read_job
from nanolm.sweeps.stop_file import START_NO_JOB, STOP, read_stop_file, write_stop_file
from nanolm.sweeps.waiting import Waits
from nanolm.training.stop import StopRequest

if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig

# Seconds between two checks of jobs that run in other processes.
POLL_INTERVAL = 1.0


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """A sweep as Hydra requests it from one of nanolm's sweepers.

    Attributes:
        overrides: the overrides on the command line, with one value or several.
        config: the configuration that Hydra composed for the sweep, with the launcher and the sweeper.
        job: the function that runs a job.
    """

    overrides: list[str]
    config: DictConfig
    hydra_context: HydraContext
    job: SweepJob

    @property
    def directory(self) -> Path:
        """The directory of the sweep."""
        return display_path(Path(str(self.config.hydra.sweep.dir)))

    @property
    def max_hours(self) -> float | None:
        """The setting sweep.max_hours."""
        return self.config.hydra.sweeper.get("max_hours")

    @property
    def order(self) -> str:
        """The setting sweep.order, of a grid."""
        return str(self.config.hydra.sweeper.order)

    @property
    def config_sources(self) -> tuple[str | None, list[str]]:
        """The user's folder of YAML files, and the `hydra.searchpath=` overrides, as `compose_jobs` takes them."""
        overrides = self.config.hydra.overrides.hydra
        return self.job.config_dir, [text for text in overrides if text.startswith("hydra.searchpath=")]


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        runs: the run directories of its jobs.
        errors: the error of each job that failed.
        signal: number of the signal that ended the sweep, or None.
    """

    runs: tuple[Path, ...]
    errors: tuple[str, ...] = ()
    signal: int | None = None

    @property
    def exit_status(self) -> int:
        """The exit status of the command."""
        return 128 + self.signal if self.signal else int(bool(self.errors))


def check_request(request: SweepRequest) -> Iterator[NanolmError]:
    """Refuse a launcher that cannot start the jobs, and a time for a sweep that is over before it starts."""
    yield from concurrency.check(request.config)
    hours = request.max_hours
    if hours is not None and not 0 < hours < math.inf:
        yield SettingsError(
            f"sweep.max_hours is {hours:g}, and must be more than 0 and finite",
            where="sweep.max_hours",
            hint="leave it out for no limit",
        )


class Driver:
    """Runs the jobs of a sweep. Inside its context, signals end the sweep and the progress is shown.

    Args:
        request: the sweep.
        n_jobs: the largest number of jobs, for the progress and to share the cores.
        clock: seconds since 1970, for sweep.max_hours.

    Attributes:
        stop: the request that signals make.
        waits: reports processes that hold jobs and do not run.
    """

    def __init__(self, request: SweepRequest, n_jobs: int, clock: Callable[[], float] = time.time) -> None:
        config = request.config
        hours = request.max_hours
        self._clock = clock
        host, process = socket.gethostname(), os.getpid()
        self._stop_file = (request.directory / f".stop-{host}-{process}").absolute()
        self._request = request
        self.job = dataclasses.replace(
            request.job,
            driver=(host, process),
            start_time=clock(),
            deadline=None if hours is None else clock() + 3600 * hours,
            stop_file=self._stop_file,
            threads=concurrency.threads_per_job(config, n_jobs),
            fail_fast=bool(config.hydra.sweeper.get("fail_fast")),
        )
        self._is_in_process = concurrency.is_in_process(config)
        self._batch_size = concurrency.batch_size(config)
        self._n_launched = 0
        self._progress = Progress(n_jobs)
        self.waits = Waits(request.directory, self._progress.show)
        self.stop = StopRequest()
        self._previous_handlers: dict[int, Any] = {}
        # By the key of each job: the job, its last known state, its attempts, and why it is not tried again.
        self._jobs: dict[str, Job] = {}
        self._reports: dict[str, Report] = {}
        self._attempts: collections.Counter[str] = collections.Counter()
        self._failures: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._remove_stop_file()
        self._previous_handlers = signals.install(self._handle_signal)
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if close := getattr(self.__dict__.get("_launcher"), "close", None):
            close()
        signals.restore(self._previous_handlers)
        self._progress.stop()
        self._remove_stop_file()
        for job in self._jobs.values():
            # Folders of jobs that never started are empty.
            with contextlib.suppress(OSError):
                job.run.path.rmdir()

    def _remove_stop_file(self) -> None:
        with contextlib.suppress(OSError):
            self._stop_file.unlink(missing_ok=True)

    @property
    def is_stopping(self) -> bool:
        """Whether no further job is started."""
        return bool(self.stop.signal) or bool(read_stop_file(self._stop_file)) or self.is_over_time

    @property
    def is_over_time(self) -> bool:
        """Whether sweep.max_hours is over."""
        return self.job.deadline is not None and self._clock() >= self.job.deadline

    def run(self, jobs: Sequence[Job]) -> list[Report]:
        """Run the jobs that are not done, and wait for those that other processes run.

        Returns:
            The state of each job, in the order of the jobs.
        """
        self._jobs |= {job.key: job for job in jobs}
        self._read_states(jobs)
        self._progress.add(jobs, self._reports)
        with contextlib.suppress(Stopped):
            while not self.is_stopping and (remaining := [job for job in jobs if not self._is_done(job)]):
                self._read_states(remaining)
                ready = [job for job in remaining if not self._is_done(job) and not self._is_running(job)]
                if ready:
                    self._launch(ready[: self._batch_size])
                elif running := [job for job in remaining if self._is_running(job)]:
                    for job in running:
                        run = job.run
                        self.waits.check(str(run.path), run.lock, (run.metrics, run.log, run.summary, run.lock))
                    time.sleep(POLL_INTERVAL)
        self._read_states(jobs)
        self._progress.update()
        return [self._reports[job.key] for job in jobs]

    def _read_states(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            report = read_job(job)
            if job.key in self._failures and report.state not in self.job.final_states:
                report = dataclasses.replace(report, state=State.failed, error=self._failures[job.key])
            self._reports[job.key] = report

    def _is_done(self, job: Job) -> bool:
        return job.key in self._failures or self._reports[job.key].state in self.job.final_states

    def _is_running(self, job: Job) -> bool:
        return self._reports[job.key].state is State.running

    def _launch(self, batch: Sequence[Job]) -> None:
        """Run a batch of jobs through the launcher, and record those that are not to be retried."""
        overrides = [job_overrides(job) for job in batch]
        reports: list[Any] = [None] * len(batch)
        problem = ""
        try:
            # Of a process that failed, the value is an exception.
            returned = self._launcher.launch(overrides, initial_job_idx=self._n_launched)
            reports = [job_return._return_value for job_return in returned]
        except NanolmError:
            raise
        except Exception as error:
            # Of the launcher: a job returns its own errors.
            if isinstance(error, OSError) and is_disk_failure(error):
                raise write_failure(error, "the sweep", str(self._request.directory), "repeat the command") from error
            # A killed worker ends the whole batch, and the results of its other jobs are lost.
            problem = f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]
        self._n_launched += len(batch)
        for job, report in zip(batch, reports, strict=True):
            if isinstance(report, LostJob):
                self._count_attempt(job, report.problem, report.n_attempts)
            elif not isinstance(report, Report):
                self._count_attempt(job, problem)
            elif report.state is State.failed:
                self._failures[job.key] = report.error
                self._progress.report_failure(job, report)
            elif report.signal and self._is_in_process:
                self.stop.receive(report.signal)
            elif report.state in (State.interrupted, State.unfinished):
                self._count_attempt(job, problem)
        if self.job.fail_fast and any(job.key in self._failures for job in batch):
            write_stop_file(self._stop_file, START_NO_JOB)

    def _count_attempt(self, job: Job, problem: str, n_attempts: int = 1) -> None:
        self._attempts[job.key] += n_attempts
        if self._attempts[job.key] < MAX_ATTEMPTS or read_job(job).state in (State.running, *self.job.final_states):
            return
        text = f"its process ended without a result, {MAX_ATTEMPTS} times" + (f": {problem}" if problem else "")
        self._failures[job.key] = text
        with contextlib.suppress(OSError):
            write_text(job.run.error, text + "\n")

    @functools.cached_property
    def _launcher(self) -> Any:
        from hydra.core.plugins import Plugins
        from hydra.types import HydraContext

        context = self._request.hydra_context
        loader = PlannedJobLoader(context.config_loader.get_search_path())
        return Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=loader, callbacks=context.callbacks),
            task_function=self.job,
            config=self._request.config,
        )

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        is_first = not self.stop.signal
        self.stop.receive(number)
        write_stop_file(self._stop_file, STOP)
        if is_first and self._is_in_process:
            raise Stopped(number)
