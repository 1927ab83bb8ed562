"""Run the jobs of a sweep as a Slurm job array, through submitit: hydra/launcher=slurm."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.errors import SettingsError
from nanolm.locks import Lock
from nanolm.runs.directory import display_path
from nanolm.sweeps.handover import LostJob, PlannedJob
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.messages import show
from nanolm.sweeps.launchers.slurm import queue as slurm_queue
from nanolm.sweeps.launchers.slurm import records as slurm_records
from nanolm.sweeps.launchers.slurm.job import SubmittedJob
from nanolm.sweeps.launchers.slurm.queue import CANCELLED, PENDING, RUNNING, STUCK, Entry
from nanolm.sweeps.launchers.slurm.settings import Executor, SlurmConfig, slurm_settings
from nanolm.sweeps.launchers.slurm.submission import submit
from nanolm.sweeps.launchers.slurm.task import SlurmTask
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import STOP, write_stop_file

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.sweeps.job import SweepJob

# In the directory of the sweep: a folder of each command, with submitit's scripts, pickles and logs.
FOLDER = ".submitit"

# Seconds between two looks for results, and between two squeues while the sweep ends.
INTERVAL = 0.5
ENDING_INTERVAL = 2.0
# Seconds that jobs have to save a checkpoint before `close` cancels them.
GRACE = 300.0
# Jobs of an array at most; Slurm's own limit is 1001 unless a cluster has another one.
MAX_ARRAY = 1000


class SlurmJobs:
    """The jobs of a sweep in Slurm's queue; an `Engine`.

    Args:
        settings: of the launcher.
        function: runs a job.
        directory: of the sweep.
        show: prints a message for the user.
    """

    def __init__(
        self,
        settings: SlurmConfig,
        function: SweepJob,
        directory: Path,
        show: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._settings = settings
        self._function = function
        self._directory = directory
        self._show = show
        # Several drivers may share a sweep.
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._folder = directory.absolute() / FOLDER / name
        # Of the jobs, as squeue shows it.
        self._name = f"nanolm-{directory.absolute().name}"
        self._lock: Lock | None = None
        self._waiting: list[Request] = []
        self._jobs: dict[int, SubmittedJob] = {}
        # Numbers of jobs that were cancelled, or left to another command, since the last `ended`.
        self._dropped: list[int] = []
        self._next_poll = 0.0
        self._is_ending = False
        self._next_attempt = 0.0
        self._reported: set[str] = set()

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        return self._settings.n_slots

    def start(self, requests: Sequence[Request]) -> None:
        """Submit jobs, unless another command has them in the queue; those started together are one array.

        Raises:
            SettingsError: sbatch refuses them.
        """
        adopted = self._adopt({PlannedJob.parse(request.overrides).folder: request.number for request in requests})
        new = [request for request in requests if request.number not in adopted]
        self._waiting = sorted([*self._waiting, *new], key=lambda request: request.number)
        self._submit()

    def ended(self, timeout: float) -> list[Ended]:
        """Return the jobs that have ended, as `Engine.ended` does."""
        until = time.monotonic() + timeout
        while not (found := self._collect()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(INTERVAL, left))
        self._submit()
        return found

    def cancel_waiting(self) -> None:
        """Cancel the jobs that wait; `ended` reports them. Jobs of a living command are left to it."""
        if self._is_ending:
            return
        self._is_ending = True
        self._next_poll = time.monotonic() + INTERVAL
        left = [number for number, each in self._jobs.items() if each.command and each.command.is_alive()]
        for number in left:
            del self._jobs[number]
        self._dropped += [*left, *(request.number for request in self._waiting)]
        self._waiting = []
        if self._uses_slurm:
            slurm_queue.cancel([each.id for each in self._jobs.values()], f"--state={PENDING}")

    def stop_running(self) -> None:
        """Stop the jobs of commands that have died; its own find the stop file of the sweep."""
        for each in self._jobs.values():
            if each.command:
                each.command.stop_running()

    def close(self) -> None:
        """Cancel jobs that wait, and wait until those that run have saved a checkpoint."""
        if self._jobs:
            self.cancel_waiting()
            self.stop_running()
        if self._jobs and self._function.stop_file is not None:
            write_stop_file(self._function.stop_file, STOP)
        cancelled_at = time.monotonic() + GRACE
        while self._jobs:
            if time.monotonic() > cancelled_at:
                self._kill()
                cancelled_at += GRACE
            if not self._collect():
                time.sleep(INTERVAL)
        slurm_records.leave_folder(self._folder, self._lock)

    @property
    def _uses_slurm(self) -> bool:
        return self._settings.executor is Executor.slurm

    def _adopt(self, numbers: Mapping[str, int]) -> set[int]:
        """Find jobs that another command has in Slurm's queue, and wait for them instead of submitting them again.

        Args:
            numbers: of jobs, by the folders of their runs.

        Returns:
            The numbers of those that were found.
        """
        found: dict[int, SubmittedJob] = {}
        if self._uses_slurm:
            for command in slurm_records.other_commands(self._folder):
                # Of two jobs of a run, the one that runs.
                for job, _ in sorted((command.queue() or {}).items(), key=lambda item: item[1].state == RUNNING):
                    if (number := numbers.get(command.jobs[job])) is not None:
                        found[number] = SubmittedJob(job, command=command)
        if found:
            jobs = ", ".join(sorted(each.id for each in found.values()))
            self._show(f"nanolm: jobs of another command are in Slurm's queue, and are not submitted again: {jobs}")
            self._next_poll = self._next_poll or time.monotonic() + self._settings.poll_seconds
        self._jobs |= found
        return set(found)

    def _submit(self) -> None:
        """Submit jobs that wait: all of them, or as many as may run on this machine."""
        n_free = MAX_ARRAY if self._uses_slurm else self.n_slots - len(self._jobs)
        while n_free > 0 and self._waiting and time.monotonic() >= self._next_attempt:
            requests = self._waiting[:n_free]
            limits = self._settings.max_requeues, self._settings.world_size
            tasks = [
                SlurmTask(self._function, self._directory, tuple(request.overrides), *limits) for request in requests
            ]
            self._lock = self._lock or slurm_records.claim_folder(self._folder)
            try:
                jobs = submit(tasks, self._settings, self._folder, self._name)
            except SettingsError as error:
                if not self._jobs:
                    raise
                # Of jobs like those that Slurm has: it may be busy, or allow no more at the moment.
                self._next_attempt = time.monotonic() + self._settings.poll_seconds
                self._report(error.found, f"nanolm: {error.found}; it is asked again while other jobs run")
                return
            self._waiting = self._waiting[n_free:]
            for request, job in zip(requests, jobs, strict=True):
                self._jobs[request.number] = SubmittedJob(job.job_id, self._settings.world_size, job)
            self._next_poll = self._next_poll or time.monotonic() + self._settings.poll_seconds
            if not self._uses_slurm:
                return
            runs = [PlannedJob.parse(request.overrides).folder for request in requests]
            records = {job.job_id: run for job, run in zip(jobs, runs, strict=True)}
            slurm_records.write_records(self._folder, records, self._function.stop_file)
            if len(jobs) > 1:
                array, shown = self._jobs[requests[0].number].array, f"squeue --name {shlex.quote(self._name)}"
                self._report("array", f"nanolm: {len(jobs)} jobs are array {array} in Slurm's queue: `{shown}`")

    def _collect(self) -> list[Ended]:
        """Return the jobs that have ended since the last call."""
        found = [Ended(number, Report(State.new)) for number in self._dropped]
        self._dropped = []
        # Otherwise NFS would show files that other machines write with a delay.
        with contextlib.suppress(OSError):
            self._folder.chmod(self._folder.stat().st_mode & 0o7777)
        names = self._file_names()
        # A process on this machine makes room for the next one when it has ended.
        results = {
            number: each
            for number, each in self._jobs.items()
            if each.has_result(names) and (self._uses_slurm or each.handle.done())
        }
        found += [Ended(number, each.read_result()) for number, each in results.items()]
        found += self._collect_lost({number: each for number, each in self._jobs.items() if number not in results})
        for ended in found:
            if job := self._jobs.pop(ended.number, None):
                job.clean(ended.result)
        return found

    def _file_names(self) -> set[str]:
        with contextlib.suppress(OSError):
            return {path.name for path in self._folder.iterdir()}
        return set()

    def _collect_lost(self, jobs: dict[int, SubmittedJob]) -> Iterator[Ended]:
        """Find the jobs that have ended without a result."""
        if not self._uses_slurm:
            for number, each in jobs.items():
                if each.handle.done() and not each.has_result(self._file_names()):
                    yield Ended(number, LostJob(each.describe("its process ended without a result")))
            return
        if not jobs or time.monotonic() < self._next_poll:
            return
        queue = slurm_queue.read_queue([each.id for each in jobs.values()])
        self._next_poll = time.monotonic() + (ENDING_INTERVAL if self._is_ending else self._settings.poll_seconds)
        if queue is None:
            return
        waiting = [each.id for each in jobs.values() if each.id in queue and queue[each.id].state == PENDING]
        if self._is_ending:
            # Jobs may have returned to the queue.
            slurm_queue.cancel(waiting, f"--state={PENDING}")
        else:
            self._report_stuck({job: queue[job] for job in waiting})
        for number, each in jobs.items():
            entry = queue.get(each.id)
            had_left, each.has_left = each.has_left, entry is None or entry.is_final
            if not each.has_left:
                continue
            if each.command:
                # The driver reads the state of its run.
                yield Ended(number, Report(State.running))
            elif had_left or self._is_ending:
                # The result of a job that has just left the queue may not be visible here yet.
                yield Ended(number, self._end_of_lost(each, entry))

    def _end_of_lost(self, job: SubmittedJob, entry: Entry | None) -> Report | LostJob:
        state = slurm_queue.describe_end(job.id, entry)
        if not state.startswith(CANCELLED):
            return LostJob(job.describe(state))
        if self._is_ending:
            return Report(State.new)
        return Report(State.failed, error=f"Slurm job {job.id} was cancelled\n  hint:  the same command resumes it")

    def _report_stuck(self, waiting: Mapping[str, Entry]) -> None:
        """Say once of each reason that jobs wait in the queue for something that does not come by itself."""
        for job, entry in waiting.items():
            if entry.reason in STUCK:
                self._report(
                    entry.reason,
                    f"nanolm: Slurm does not start job {job}: {STUCK[entry.reason]} ({entry.reason})\n"
                    f"  hint:  `scontrol show job {job}` shows it; Ctrl-C cancels the jobs of this sweep",
                )

    def _report(self, subject: str, text: str) -> None:
        """Show a message, the first time for each subject."""
        if subject not in self._reported:
            self._reported.add(subject)
            self._show(text)

    def _kill(self) -> None:
        """Cancel jobs that run, which have not ended by themselves."""
        if self._uses_slurm:
            slurm_queue.cancel([each.id for each in self._jobs.values()])
            return
        for each in self._jobs.values():
            with contextlib.suppress(OSError):
                os.kill(int(each.id), signal.SIGTERM)


def slurm_jobs(config: DictConfig, function: SweepJob) -> SlurmJobs:
    """Return the engine of a sweep.

    Args:
        config: the composed config of the sweep.
        function: runs a job.
    """
    return SlurmJobs(slurm_settings(config), function, display_path(Path(str(config.hydra.sweep.dir))), show)
