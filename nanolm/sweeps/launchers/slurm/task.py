"""A job of a sweep in the process that Slurm starts for it: it returns to the queue before its time is over.

submitit would end the process where a signal reaches it. Here the job ends as after any signal, with a checkpoint of
the step that it is in, and submitit's own handler then puts it back into the queue.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from nanolm.errors import NanolmError, RankError
from nanolm.runs.directory import RunDirectory
from nanolm.signals import Stopped
from nanolm.sweeps.handover import PlannedJob
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.launchers.slurm.queue import RUNNING, read_queue
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import read_stop_file
from nanolm.torchrun import rank

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# Slurm's announcement of the time limit, of which submitit takes the second.
ANNOUNCEMENTS = (signal.SIGUSR1, signal.SIGUSR2)
# Comes before a preemption, and when a job is cancelled.
TERMINATION = signal.SIGTERM

# States of a job that can be resumed.
RESUMABLE = (State.interrupted, State.unfinished, State.new)

Requeue = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class SlurmTask:
    """Runs a planned job; submitit pickles it, and again each time that the job returns to the queue.

    Attributes:
        function: runs the job.
        directory: of the sweep.
        overrides: the job, as `PlannedJob.parse` reads it.
        max_requeues: how often it may return to the queue.
        world_size: the number of processes that Slurm starts, which train together.
        n_requeues: how often it has returned to the queue.
    """

    function: SweepJob
    directory: Path
    overrides: tuple[str, ...]
    max_requeues: int
    world_size: int = 1
    n_requeues: int = 0

    def __call__(self) -> Report:
        """Run or resume the job and return its report, unless it is put back into the queue.

        Raises:
            SystemExit: it is in the queue again, or was cancelled; submitit writes no result then.
        """
        requeue = _take_over_signals()
        try:
            report = self._run_until_stopped()
        except Stopped as stopped:
            # Slurm's second signal, at the same time as the first one.
            report = Report(State.interrupted, signal=stopped.number)
        _ignore_signals()
        if not report.signal or report.state not in RESUMABLE or read_stop_file(self.function.stop_file):
            return report
        if self.world_size > 1 and rank() > 0:
            # The first process decides for all.
            return report
        return self._end_early(report, requeue)

    def checkpoint(self) -> DelayedSubmission:
        """Return what submitit runs when the job starts again; the run itself has its own checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(dataclasses.replace(self, n_requeues=self.n_requeues + 1))

    def _run_until_stopped(self) -> Report:
        try:
            return self._run()
        except Stopped as stopped:
            report = Report(State.interrupted, signal=stopped.number)
            _ignore_signals()
            return report

    def _run(self) -> Report:
        planned = PlannedJob.parse(self.overrides)
        run = RunDirectory(self.directory / planned.folder)
        if self.world_size == 1:
            return self.function.run(run, planned.load, planned.choices)
        from submitit.helpers import TorchDistributedEnvironment

        from nanolm.training.distributed.ranks import process_group

        # As torchrun would. Each process sees all GPUs of its machine, and takes its own.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        try:
            config = planned.load()
        except NanolmError:
            # The same on all ranks; the first one reports it.
            return self.function.run(run, planned.load, planned.choices) if rank() == 0 else Report(State.failed)
        try:
            with process_group(config.trainer) as ranks:
                return self.function.run(run, lambda: config, planned.choices, ranks)
        except RankError as error:
            # Another process or its machine died: the job is lost, and not failed.
            raise RuntimeError(error.found) from error

    def _end_early(self, report: Report, requeue: Requeue | None) -> Report:
        """Return to the queue after a signal, if Slurm leaves it to the job, and if it may."""
        number = report.signal
        if number not in ANNOUNCEMENTS and not (number == TERMINATION and _is_to_be_preempted()):
            # Slurm knows whether it was cancelled, and starts it again itself if it wants to.
            raise SystemExit(128 + number)
        if self.n_requeues >= self.max_requeues:
            times = f"{self.max_requeues} time{'s' * (self.max_requeues != 1)}"
            error = (
                f"it was returned to the queue {times}, as hydra.launcher.max_requeues allows, and its time was over "
                "again\n  hint:  the same command resumes it; a longer hydra.launcher.time_limit"
            )
            return dataclasses.replace(report, state=State.failed, error=error)
        if requeue is not None:
            try:
                requeue(number)
            except (subprocess.SubprocessError, OSError) as error:
                # The driver starts the job again.
                print(f"scontrol requeue failed: {error}", file=sys.stderr)
        return report


def _take_over_signals() -> Requeue | None:
    """Let the signals of Slurm raise Stopped, until training or this module handles them otherwise.

    Returns:
        The handler of submitit, which puts the job back into the queue; None outside of submitit.
    """
    found: Requeue | None = None
    for number in (*ANNOUNCEMENTS, TERMINATION):
        before: Any = signal.signal(number, _raise_stopped)
        if number in ANNOUNCEMENTS and str(getattr(before, "__module__", "")).startswith("submitit"):
            found = before
    return found


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    # Python drops an exception that is raised in a destructor: the next signal raises one again.
    raise Stopped(number)


def _ignore_signals() -> None:
    """Let nothing interrupt what follows until the process ends: Slurm sends several signals."""
    for number in (*ANNOUNCEMENTS, TERMINATION):
        # Of SIG_IGN, Python warns if the signal has arrived and was not handled yet.
        signal.signal(number, _ignore)
    # Slurm sends them to squeue and scontrol as well, which inherit the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, (*ANNOUNCEMENTS, TERMINATION))


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _is_to_be_preempted() -> bool:
    """Return whether Slurm gives this job time before it preempts it.

    A job that is cancelled no longer counts as running. One that is preempted without such a time does not either, and
    Slurm itself puts it back into the queue.
    """
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{element}" if array else os.environ.get("SLURM_JOB_ID")
    entry = (read_queue([job]) or {}).get(job) if job else None
    return entry is not None and entry.state == RUNNING
