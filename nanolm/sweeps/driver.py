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
from nanolm.errors import NanolmError, SettingsError
from nanolm.files import disk_time, write_text
from nanolm.runs.directory import display_path
from nanolm.signals import Stopped
from nanolm.sweeps.handover import MAX_ATTEMPTS, LostJob, PlannedJobLoader, job_overrides
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.launchers import registry
from nanolm.sweeps.launchers.blocking import BlockingJobs
from nanolm.sweeps.launchers.engine import Engine, Request
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
    yield from registry.check(request.config)
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
        clock: returns seconds since 1970, as modification times of files; by default those of the sweep's directory.

    Attributes:
        stop: the request that signals make.
        waits: reports processes that hold jobs and do not run.
    """

    def __init__(self, request: SweepRequest, n_jobs: int, clock: Callable[[], float] | None = None) -> None:
        config = request.config
        hours = request.max_hours
        self._clock = clock = clock or functools.partial(disk_time, request.directory)
        host, process = socket.gethostname(), os.getpid()
        self._stop_file = (request.directory / f".stop-{host}-{process}").absolute()
        self._request = request
        self.job = dataclasses.replace(
            request.job,
            driver=(host, process),
            start_time=clock(),
            deadline=None if hours is None else clock() + 3600 * hours,
            stop_file=self._stop_file,
            threads=registry.threads_per_job(config, n_jobs),
            fail_fast=bool(config.hydra.sweeper.get("fail_fast")),
        )
        self._is_in_process = registry.is_in_process(config)
        self._max_running = 1 if self._is_in_process else config.hydra.sweeper.get("max_running")
        self._progress = Progress(n_jobs)
        self.waits = Waits(request.directory, self._progress.show, clock)
        self.stop = StopRequest()
        self._previous_handlers: dict[int, Any] = {}
        # By the key of each job: the job, its last known state, its attempts, and why it is not tried again.
        self._jobs: dict[str, Job] = {}
        self._reports: dict[str, Report] = {}
        self._attempts: collections.Counter[str] = collections.Counter()
        self._failures: dict[str, str] = {}
        # By number in the order of the jobs: those that the engine has, and those that other processes run.
        self._numbers: dict[str, int] = {}
        self._started: dict[int, Job] = {}
        self._elsewhere: dict[int, Job] = {}
        self._has_stopped_jobs = False

    def __enter__(self) -> Self:
        self._remove_stop_file()
        self._previous_handlers = signals.install(self._handle_signal)
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if engine := self.__dict__.get("_engine"):
            engine.close()
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

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        return self._max_running or self._engine.n_slots

    @property
    def n_started(self) -> int:
        """The number of jobs that were started here and have not ended."""
        return len(self._started)

    @property
    def has_open_jobs(self) -> bool:
        """Whether jobs that were started here, or that other processes run, are not over."""
        return bool(self._started or self._elsewhere)

    def run(self, jobs: Sequence[Job]) -> list[Report]:
        """Run the jobs that are not done, and wait for those that other processes run.

        Returns:
            The state of each job, in the order of the jobs.
        """
        self.add(jobs)
        waiting = collections.deque(jobs)
        # An engine with processes of its own receives all jobs, and has a queue.
        at_once = self._max_running or len(jobs)
        with contextlib.suppress(Stopped):
            while waiting or self.has_open_jobs:
                if self.is_stopping:
                    waiting.clear()
                while waiting and (n_free := at_once - self.n_started) > 0:
                    self.start([waiting.popleft() for _ in range(min(len(waiting), n_free))])
                self.wait()
        for job in jobs:
            self._read_state(job)
        self._progress.update()
        return [self.report(job) for job in jobs]

    def report(self, job: Job) -> Report:
        """Return the last known state of a job."""
        return self._reports[job.key]

    def add(self, jobs: Sequence[Job]) -> None:
        """Read the states of jobs, and show them in the progress."""
        for job in jobs:
            self._jobs[job.key] = job
            self._numbers.setdefault(job.key, len(self._numbers))
            self._read_state(job)
        self._progress.add(jobs, self._reports)

    def start(self, jobs: Sequence[Job]) -> list[Job]:
        """Start jobs that were added, unless they are done or another process runs them.

        Returns:
            Those that are over.
        """
        over, requests = [], []
        for job in jobs:
            number = self._numbers[job.key]
            if self._is_over(job):
                over.append(job)
            elif self.report(job).state is State.running:
                self._elsewhere[number] = job
            else:
                self._started[number] = job
                requests.append(Request(number, job_overrides(job)))
        if requests:
            self._engine.start(requests)
        return over

    def wait(self) -> list[Job]:
        """Wait for jobs to end, at most for a second.

        Returns:
            Those that are over: done, failed for good, or, in a sweep that ends early, neither.
        """
        is_stopping = self.is_stopping
        if is_stopping and self._started:
            self._engine.cancel_waiting()
        if self.stop.signal and self._started and not self._has_stopped_jobs:
            self._has_stopped_jobs = True
            self._engine.stop_running()
        changed = []
        if self._started:
            for ended in self._engine.ended(POLL_INTERVAL):
                changed.append(self._started.pop(ended.number))
                self._receive(changed[-1], ended.result)
        elif self._elsewhere and not is_stopping:
            time.sleep(POLL_INTERVAL)
        changed += self._elsewhere.values()
        self._elsewhere = {}
        for job in changed:
            self._read_state(job)
        if self.is_stopping:
            return changed
        for job in changed:
            if self.report(job).state is State.running:
                run = job.run
                self.waits.check(str(run.path), run.lock, (run.metrics, run.log, run.summary, run.lock))
        return self.start(changed)

    def _read_state(self, job: Job) -> None:
        report = read_job(job)
        if job.key in self._failures and report.state not in self.job.final_states:
            report = dataclasses.replace(report, state=State.failed, error=self._failures[job.key])
        self._reports[job.key] = report

    def _is_over(self, job: Job) -> bool:
        return job.key in self._failures or self.report(job).state in self.job.final_states

    def _receive(self, job: Job, result: Report | LostJob) -> None:
        """Record the result of a job: whether it failed, and whether it is to be started again."""
        if isinstance(result, LostJob):
            self._count_attempt(job, result.problem)
        elif result.state is State.failed:
            self._failures[job.key] = result.error
            self._progress.report_failure(job, result)
        elif result.signal and self._is_in_process:
            self.stop.receive(result.signal)
        elif result.state in (State.interrupted, State.unfinished):
            self._count_attempt(job)
        if self.job.fail_fast and job.key in self._failures:
            write_stop_file(self._stop_file, START_NO_JOB)

    def _count_attempt(self, job: Job, problem: str = "") -> None:
        self._attempts[job.key] += 1
        if self._attempts[job.key] < MAX_ATTEMPTS:
            if problem and not self.is_stopping:
                self._progress.announce(f"nanolm: {job.run.path}: {problem}; a new process resumes it")
            return
        if read_job(job).state in (State.running, *self.job.final_states):
            return
        text = f"its process ended without a result, {MAX_ATTEMPTS} times" + (f": {problem}" if problem else "")
        self._failures[job.key] = text
        with contextlib.suppress(OSError):
            write_text(job.run.error, text + "\n")

    @functools.cached_property
    def _engine(self) -> Engine:
        config = self._request.config
        if launcher := registry.LAUNCHERS.get(registry.launcher_name(config)):
            return launcher.make(config, self.job)
        return BlockingJobs(self._hydra_launcher(), str(self._request.directory))

    def _hydra_launcher(self) -> Any:
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
