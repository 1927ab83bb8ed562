"""Run the jobs of a sweep as a Slurm job array, through submitit: hydra/launcher=slurm."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from nanolm.errors import SettingsError
from nanolm.runs.directory import display_path
from nanolm.sweeps.handover import LostJob
from nanolm.sweeps.launchers import slurm_queue
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.slurm_queue import CANCELLED, PENDING, STUCK, Entry
from nanolm.sweeps.launchers.slurm_settings import Executor, SlurmConfig, slurm_settings
from nanolm.sweeps.launchers.slurm_task import SlurmTask
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import STOP, write_stop_file
from nanolm.terminal import visible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.sweeps.job import SweepJob

# In the directory of the sweep: a folder of each driver, with submitit's scripts, pickles and logs.
FOLDER = ".submitit"

# Seconds between two looks for results, and between two squeues while the sweep ends.
INTERVAL = 0.5
ENDING_INTERVAL = 2.0
# Seconds that jobs have to save a checkpoint before `close` cancels them.
GRACE = 300.0
# Jobs of an array at most; Slurm's own limit is 1001 unless a cluster has another one.
MAX_ARRAY = 1000
# Characters of the last line of a log in a message.
LINE_LENGTH = 200


@dataclasses.dataclass
class Submitted:
    """A job that was submitted.

    Attributes:
        job: submitit's handle of it.
        has_left: whether the last squeue showed it as ended, or no longer.
    """

    job: Any
    has_left: bool = False

    @property
    def id(self) -> str:
        """Slurm's id; of a process on this machine its number."""
        return self.job.job_id

    @property
    def result(self) -> Path:
        """The file in which submitit writes the result of its first process."""
        return self.job.task(0).paths.result_pickle

    @property
    def stderr(self) -> Path:
        """The log of the errors of its first process."""
        return self.job.task(0).paths.stderr


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
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._folder = directory.absolute() / FOLDER / name
        self._waiting: list[Request] = []
        self._jobs: dict[int, Submitted] = {}
        self._canceled: list[int] = []
        self._next_poll = 0.0
        self._is_ending = False
        self._reported: set[str] = set()

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        return self._settings.n_slots

    def start(self, requests: Sequence[Request]) -> None:
        """Submit jobs; those that are started together are one array.

        Raises:
            SettingsError: sbatch refuses them.
        """
        self._waiting = sorted([*self._waiting, *requests], key=lambda request: request.number)
        self._submit()

    def ended(self, timeout: float) -> list[Ended]:
        """Return the jobs that have ended, as `Engine.ended` does."""
        until = time.monotonic() + timeout
        while not (found := self._collect()) and (left := until - time.monotonic()) > 0:
            time.sleep(min(INTERVAL, left))
        self._submit()
        return found

    def cancel_waiting(self) -> None:
        """Cancel the jobs that wait; `ended` reports them."""
        self._canceled += [request.number for request in self._waiting]
        self._waiting = []
        if not self._is_ending:
            self._is_ending = True
            self._next_poll = time.monotonic() + INTERVAL
            if self._uses_slurm:
                slurm_queue.cancel(self._queue_ids(), f"--state={PENDING}")

    def stop_running(self) -> None:
        """Do nothing: jobs that run find the stop file of the sweep."""

    def close(self) -> None:
        """Cancel jobs that wait, and wait until those that run have saved a checkpoint."""
        if self._jobs and self._function.stop_file is not None:
            write_stop_file(self._function.stop_file, STOP)
        self.cancel_waiting()
        cancelled_at = time.monotonic() + GRACE
        while self._jobs:
            if time.monotonic() > cancelled_at:
                self._kill()
                cancelled_at += GRACE
            if not self._collect():
                time.sleep(INTERVAL)
        # Logs of jobs that failed stay.
        for folder in (self._folder, self._folder.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def _uses_slurm(self) -> bool:
        return self._settings.executor is Executor.slurm

    def _queue_ids(self) -> list[str]:
        """The ids that stand for all jobs: that of an array for the jobs in it."""
        return sorted({each.id.split("_")[0] for each in self._jobs.values()})

    def _submit(self) -> None:
        """Submit jobs that wait: all of them, or as many as may run on this machine."""
        at_once = MAX_ARRAY if self._uses_slurm else self.n_slots - len(self._jobs)
        while at_once > 0 and self._waiting:
            requests, self._waiting = self._waiting[:at_once], self._waiting[at_once:]
            for request, job in zip(requests, self._submitted(requests), strict=True):
                self._jobs[request.number] = Submitted(job)
            if self._uses_slurm and len(requests) > 1:
                self._show(f"nanolm: {len(requests)} jobs are job array {job.job_id.split('_')[0]} of Slurm")
            self._next_poll = time.monotonic() + self._settings.poll_seconds
            if not self._uses_slurm:
                return

    def _submitted(self, requests: Sequence[Request]) -> list[Any]:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        tasks = [
            SlurmTask(self._function, self._directory, tuple(request.overrides), self._settings.max_requeues)
            for request in requests
        ]
        executors: dict[Executor, Any] = {
            Executor.slurm: submitit.SlurmExecutor,
            Executor.local: submitit.LocalExecutor,
        }
        # submitit's own limit counts time limits alone.
        executor = executors[self._settings.executor](self._folder, max_num_timeout=self._settings.max_requeues)
        executor.update_parameters(**self._settings.parameters(f"nanolm-{self._directory.absolute().name}"))
        try:
            # submitit prints what sbatch says; and Ctrl-C is for the driver, which stops the jobs.
            with contextlib.redirect_stderr(io.StringIO()), submitit.helpers.clean_env(), _without_interrupts():
                jobs = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SettingsError(
                f"sbatch refuses the jobs: {_sbatch_message(str(error))}",
                where="hydra/launcher=slurm",
                hint="`sinfo` lists the partitions with their time limits; hydra.launcher.NAME=VALUE changes a setting",
            ) from error
        finally:
            self._remove_leftovers()
        return jobs

    def _remove_leftovers(self) -> None:
        """Remove what submitit leaves of a submission: links to the script, and pickles if it was refused."""
        for path in self._folder.glob(".submission_file_*"):
            path.unlink(missing_ok=True)
        for path in self._folder.glob("*.pkl"):
            if re.fullmatch(r"[0-9a-f]{32}\.pkl", path.name):
                path.unlink(missing_ok=True)

    def _collect(self) -> list[Ended]:
        """Return the jobs that have ended since the last call."""
        found = [Ended(number, Report(State.new)) for number in self._canceled]
        self._canceled = []
        if not self._jobs:
            return found
        # Otherwise NFS would show files that other machines write with a delay.
        with contextlib.suppress(OSError):
            self._folder.chmod(self._folder.stat().st_mode & 0o7777)
        results = {number: each for number, each in self._jobs.items() if self._has_result(each)}
        found += [Ended(number, self._read_result(each)) for number, each in results.items()]
        found += self._collect_lost({number: each for number, each in self._jobs.items() if number not in results})
        for ended in found:
            if job := self._jobs.pop(ended.number, None):
                self._clean(job, ended.result)
        return found

    def _has_result(self, job: Submitted) -> bool:
        # A process on this machine makes room for the next one when it has ended.
        return job.result.exists() and (self._uses_slurm or job.job.done())

    def _collect_lost(self, jobs: dict[int, Submitted]) -> Iterator[Ended]:
        """Find the jobs that have ended without a result."""
        if not self._uses_slurm:
            for number, each in jobs.items():
                if each.job.done() and not each.result.exists():
                    yield Ended(number, LostJob(self._describe(each, "its process ended without a result")))
            return
        if not jobs or time.monotonic() < self._next_poll:
            return
        queue = slurm_queue.read_queue(self._queue_ids())
        self._next_poll = time.monotonic() + (ENDING_INTERVAL if self._is_ending else self._settings.poll_seconds)
        if queue is None:
            return
        self._report_stuck({each.id: queue[each.id] for each in jobs.values() if each.id in queue})
        if self._is_ending and any(entry.state == PENDING for entry in queue.values()):
            # They returned to the queue after it was cancelled.
            slurm_queue.cancel(self._queue_ids(), f"--state={PENDING}")
        for number, each in jobs.items():
            entry = queue.get(each.id)
            had_left, each.has_left = each.has_left, entry is None or entry.is_final
            # The result of a job that has just left the queue may not be visible here yet.
            if each.has_left and (had_left or self._is_ending):
                yield Ended(number, self._end_of_lost(each, entry))

    def _end_of_lost(self, job: Submitted, entry: Entry | None) -> Report | LostJob:
        state = slurm_queue.describe_end(job.id, entry)
        if not state.startswith(CANCELLED):
            return LostJob(self._describe(job, state))
        if self._is_ending:
            return Report(State.new)
        return Report(State.failed, error=f"Slurm job {job.id} was cancelled\n  hint:  the same command resumes it")

    def _describe(self, job: Submitted, end: str) -> str:
        """Describe a job that has left no result, in one line, with the last line of its log."""
        name = f"Slurm job {job.id}" if self._uses_slurm else f"process {job.id}"
        lines = []
        with contextlib.suppress(OSError):
            lines = [line for line in job.stderr.read_text(errors="replace").splitlines() if line.strip()]
        last = f": {visible(lines[-1].strip()[:LINE_LENGTH])}" if lines else ""
        return f"{name}: {end}{last} ({display_path(job.stderr)})"

    def _read_result(self, job: Submitted) -> Report | LostJob:
        """Read what the function returned, or the error that it raised."""
        # The folder was made by this process: the file is that of its own job.
        outcome, value = pickle.loads(job.result.read_bytes())  # noqa: S301
        if outcome == "success" and isinstance(value, Report):
            return value
        lines = str(value).strip().splitlines() or ["no reason given"]
        return LostJob(self._describe(job, visible(lines[-1][:LINE_LENGTH])))

    def _report_stuck(self, queue: dict[str, Entry]) -> None:
        """Say once of each reason that jobs wait in the queue for something that does not come by itself."""
        for job, entry in queue.items():
            if entry.state == PENDING and entry.reason in STUCK and entry.reason not in self._reported:
                self._reported.add(entry.reason)
                self._show(
                    f"nanolm: Slurm does not start job {job}: {STUCK[entry.reason]} ({entry.reason})\n"
                    f"  hint:  `scontrol show job {job}` shows it; Ctrl-C cancels the jobs of this sweep"
                )

    def _kill(self) -> None:
        """Cancel jobs that run, which have not ended by themselves."""
        if self._uses_slurm:
            slurm_queue.cancel(self._queue_ids())
            return
        for each in self._jobs.values():
            with contextlib.suppress(OSError):
                os.kill(int(each.id), signal.SIGTERM)

    def _clean(self, job: Submitted, result: Report | LostJob) -> None:
        """Remove the files of a job that has ended; its logs stay if it was lost or has failed."""
        is_failed = isinstance(result, LostJob) or result.state is State.failed
        for path in self._folder.glob(f"{job.id}_*"):
            if path.suffix == ".pkl" or (path.suffix in (".out", ".err") and not is_failed):
                path.unlink(missing_ok=True)
        array = job.id.split("_")[0]
        if not any(path.suffix != ".sh" for path in self._folder.glob(f"{array}_*")):
            (self._folder / f"{array}_submission.sh").unlink(missing_ok=True)


def slurm_jobs(config: DictConfig, function: SweepJob) -> SlurmJobs:
    """Return the engine of a sweep.

    Args:
        config: the composed config of the sweep.
        function: runs a job.
    """
    return SlurmJobs(slurm_settings(config), function, display_path(Path(str(config.hydra.sweep.dir))), _show)


def _show(text: str) -> None:
    """Print a message on stderr, above the status line of the sweep."""
    tqdm.write(visible(text, multiline=True), file=sys.stderr)


def _sbatch_message(text: str) -> str:
    """Return what sbatch printed, without its name before each line."""
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(visible(line) for line in lines if line) or "it gives no reason"


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for new processes, and for a moment here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
