"""Gives jobs to a launcher until all are done: skips, resumes, shares with other processes, and ends when told to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from nanolm import signals
from nanolm.errors import NanolmError
from nanolm.files import write_text
from nanolm.signals import Stopped
from nanolm.sweeps import launchers
from nanolm.sweeps.job import BEGIN_NOTHING, STOP, JobResult, StopFile, SweepJob
from nanolm.sweeps.planning import Job
from nanolm.sweeps.progress import Progress
from nanolm.sweeps.states import Report, State, read

if TYPE_CHECKING:
    from hydra.types import HydraContext
    from omegaconf import DictConfig

# Seconds between two looks at jobs that run in other processes.
PATIENCE = 1.0
# How often a job is begun again whose process ended without a word.
ATTEMPTS = 3


class Driver:
    """Runs jobs while it is entered: from there on signals are asked to end the sweep, and its progress is shown.

    Args:
        config: as Hydra composed it for the sweep, launcher and sweeper included.
        hydra_context: Hydra's own.
        job: what runs a job.
        directory: of the sweep.
        n_jobs: how many there will be at most, for the progress and for sharing out the cores.

    Attributes:
        signal: the number of the one that came, or 0.
        reports: how each job stands that this driver has seen, by its key.
    """

    def __init__(
        self, config: DictConfig, hydra_context: HydraContext, job: SweepJob, directory: Path, n_jobs: int
    ) -> None:
        host, process = socket.gethostname(), os.getpid()
        self._stop_file = StopFile(str((directory / f".stop-{host}-{process}").absolute()))
        self.job = dataclasses.replace(
            job,
            leader=(host, process),
            began=time.time(),
            stop_file=self._stop_file,
            threads=launchers.threads(config, n_jobs),
            fail_fast=bool(config.hydra.sweeper.get("fail_fast")),
        )
        self._config, self._hydra_context = config, hydra_context
        self._in_process = launchers.is_in_process(config)
        self._batch_size = launchers.batch_size(config)
        self._launcher: Any = None
        self._launched = 0
        self._attempts: dict[str, int] = {}
        self._given_up: dict[str, str] = {}
        self._before: dict[int, Any] = {}
        self._progress = Progress(n_jobs)
        self._seen: dict[str, Job] = {}
        self.signal = 0
        self._is_asked = False
        self.reports: dict[str, Report] = {}

    def __enter__(self) -> Self:
        self._stop_file.remove()
        self._before = signals.install(self._receive)
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        signals.restore(self._before)
        self._progress.stop()
        self._stop_file.remove()
        for job in self._seen.values():
            # A folder that was made for a job that never began.
            with contextlib.suppress(OSError):
                job.run.path.rmdir()

    @property
    def is_stopping(self) -> bool:
        """Whether no further job begins."""
        return bool(self.signal) or bool(self._stop_file.read())

    def run(self, jobs: Sequence[Job]) -> list[Report]:
        """Runs what is missing of these jobs, and waits for what other processes run of them.

        Returns:
            How each job stands, in their order.
        """
        self._seen |= {job.key: job for job in jobs}
        self._look(jobs)
        self._progress.watch(jobs, {job.key: self.reports[job.key] for job in jobs})
        with contextlib.suppress(Stopped):
            while not self.is_stopping:
                waiting = [job for job in jobs if not self._is_over(job)]
                if not waiting:
                    break
                self._look(waiting)
                ready = [job for job in waiting if not self._is_over(job) and not self._is_running(job)]
                if ready:
                    self._launch(ready[: self._batch_size])
                elif any(self._is_running(job) for job in waiting):
                    time.sleep(PATIENCE)
        self._look(jobs)
        self._progress.look()
        return [self.reports[job.key] for job in jobs]

    def _look(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            report = read(job)
            if job.key in self._given_up and report.state not in self.job.done:
                report = dataclasses.replace(report, state=State.failed, error=self._given_up[job.key])
            self.reports[job.key] = report

    def _is_over(self, job: Job) -> bool:
        return job.key in self._given_up or self.reports[job.key].state in self.job.done

    def _is_running(self, job: Job) -> bool:
        return self.reports[job.key].state is State.running

    def _launch(self, batch: Sequence[Job]) -> None:
        """Has the launcher run some jobs, and takes note of those that are not to be tried again."""
        overrides = [launchers.job_overrides(job) for job in batch]
        results: list[JobResult | None] = [None] * len(batch)
        problem = ""
        try:
            returned = self._make_launcher().launch(overrides, initial_job_idx=self._launched)
            results = [_result(job_return) for job_return in returned]
        except NanolmError:
            raise
        except Exception as error:
            # A worker that was killed takes the whole batch with it, what it was doing included.
            problem = f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0]
        self._launched += len(batch)
        for job, result in zip(batch, results, strict=True):
            if result is not None and result.state is State.failed:
                self._given_up[job.key] = result.error
            elif result is not None and result.signal and self._in_process:
                self._receive_for(result.signal)
            elif result is None or result.state in (State.interrupted, State.cut_off):
                self._count_attempt(job, problem)
        if self.job.fail_fast and any(job.key in self._given_up for job in batch):
            self._stop_file.say(BEGIN_NOTHING)

    def _count_attempt(self, job: Job, problem: str) -> None:
        self._attempts[job.key] = self._attempts.get(job.key, 0) + 1
        if self._attempts[job.key] < ATTEMPTS or read(job).state in (State.running, *self.job.done):
            return
        text = f"its process ended without a word, {ATTEMPTS} times" + (f": {problem}" if problem else "")
        self._given_up[job.key] = text
        with contextlib.suppress(OSError):
            write_text(job.run.error, text + "\n")

    def _make_launcher(self) -> Any:
        if self._launcher is None:
            from hydra.core.plugins import Plugins
            from hydra.types import HydraContext

            context = HydraContext(
                config_loader=launchers.PlannedJobLoader(self._hydra_context.config_loader.get_search_path()),
                callbacks=self._hydra_context.callbacks,
            )
            self._launcher = Plugins.instance().instantiate_launcher(
                hydra_context=context, task_function=self.job, config=self._config
            )
        return self._launcher

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in signals.REPEATED and self._is_asked:
            os._exit(128 + number)
        is_first = not self.signal
        self._receive_for(number)
        if is_first and self._in_process:
            raise Stopped(number)

    def _receive_for(self, number: int) -> None:
        self._is_asked = self._is_asked or number in signals.REPEATED
        self.signal = self.signal or number
        self._stop_file.say(STOP)


def _result(returned: Any) -> JobResult | None:
    """What a job handed back, or None where something around it failed."""
    from hydra.core.utils import JobStatus

    if returned.status is JobStatus.COMPLETED and isinstance(returned._return_value, JobResult):
        return returned._return_value
    return None
