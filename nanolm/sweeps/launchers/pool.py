"""A pool of worker processes on this machine, one in each slot, which are replaced when they die.

concurrent.futures gives up all jobs when a worker dies, and cannot give each worker its own environment.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from nanolm.errors import SweepError
from nanolm.machine import ProcessMemory, available_memory, process_memory, reset_peak
from nanolm.sweeps.handover import MAX_ATTEMPTS, LostJob
from nanolm.sweeps.launchers import worker
from nanolm.sweeps.launchers.local_settings import Slot
from nanolm.sweeps.launchers.memory import fits_gpu, fits_host
from nanolm.wording import format_bytes

# Seconds between two looks at the memory of the workers and of the machine.
INTERVAL = 0.5


@dataclasses.dataclass
class Worker:
    """A worker process.

    Attributes:
        is_ready: whether it has imported everything.
        job: the index of the job that it runs.
        memory: its memory when it was last looked at.
    """

    slot: Slot
    process: SpawnProcess
    connection: Connection
    is_ready: bool = False
    job: int | None = None
    memory: ProcessMemory | None = None

    def receive(self) -> Any:
        """Return the message that has arrived; None if the process has ended without one."""
        try:
            return self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            return None

    def look(self) -> ProcessMemory | None:
        """Return its memory now; its last known memory if it has ended."""
        self.memory = process_memory(self.process.pid or 0) or self.memory
        return self.memory


class Pool:
    """Worker processes, started when there are jobs for them. `close` must be called.

    Args:
        slots: where jobs run.
        task: runs a job in a worker process.
        environment: environment variables of all workers, which the slots add to.
        show: prints a message for the user.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        task: worker.Task,
        environment: Mapping[str, str],
        show: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._slots = slots
        self._task = task
        self._environment = environment
        self._show = show
        self._workers: dict[int, Worker] = {}
        self._n_failed_starts = 0
        # Of the last job: the largest memory of its process, and what it reserved on its GPU, in bytes.
        self._peak = 0
        self._gpu_peak = 0
        self._is_told = False

    def run(self, requests: Sequence[Any], first_number: int = 0, names: Sequence[str] = ()) -> list[Any]:
        """Run jobs and return their results in the same order; a `LostJob` for one whose processes died.

        Args:
            requests: what the task receives for each job.
            first_number: number of the first job, for the task.
            names: of the jobs, for messages.

        Raises:
            SweepError: worker processes end at their start.
            Exception: what the task raised. The workers are ended then.
        """
        try:
            return self._run(requests, first_number, names)
        except BaseException:
            self.close()
            raise

    def _run(self, requests: Sequence[Any], first_number: int, names: Sequence[str]) -> list[Any]:
        waiting = collections.deque(range(len(requests)))
        results: list[Any] = [None] * len(requests)
        n_lost: collections.Counter[int] = collections.Counter()
        while waiting or self._busy():
            self._start_workers(len(waiting))
            for each in self._workers.values():
                if waiting and each.is_ready and each.job is None and self._fits(each):
                    self._send(each, waiting.popleft(), requests, first_number)
            for each in self._with_news():
                job, message = each.job, each.receive()
                if isinstance(message, worker.Ready):
                    each.is_ready, self._n_failed_starts = True, 0
                elif isinstance(message, worker.Result):
                    assert job is not None
                    if message.error is not None:
                        raise message.error
                    results[job], each.job = message.value, None
                    self._note_peak(each, message.gpu_memory)
                else:
                    problem = self._remove(each)
                    if job is None:
                        continue
                    n_lost[job] += 1
                    name = names[job] if names else f"job {first_number + job}"
                    if n_lost[job] < MAX_ATTEMPTS:
                        waiting.appendleft(job)
                        self._show(f"nanolm: {name}: {problem}; a new process resumes it")
                    else:
                        results[job] = LostJob(problem, n_lost[job])
        return results

    def close(self) -> None:
        """End the workers; one that runs a job saves a checkpoint first."""
        for each in self._workers.values():
            each.connection.close()
            if each.job is not None:
                each.process.terminate()
        for each in self._workers.values():
            each.process.join()
        self._workers = {}

    def _busy(self) -> list[Worker]:
        return [each for each in self._workers.values() if each.job is not None]

    def _start_workers(self, n_waiting: int) -> None:
        """Start as many workers as there are jobs that wait and free slots."""
        n_free = len(self._workers) - len(self._busy())
        for slot in self._slots:
            if slot.number not in self._workers and n_free < n_waiting:
                self._workers[slot.number] = _start(slot, self._task, {**self._environment, **slot.environment})
                n_free += 1

    def _send(self, each: Worker, job: int, requests: Sequence[Any], first_number: int) -> None:
        reset_peak(each.process.pid or 0)
        each.job = job
        # A process that has just died is removed when its end is noticed.
        with contextlib.suppress(OSError):
            each.connection.send((first_number + job, requests[job]))

    def _fits(self, candidate: Worker) -> bool:
        """Return whether the last job's peak fits into the memory that is left; the first of a batch always does."""
        busy, available = self._busy(), available_memory()
        running = [memory for each in busy if (memory := each.look())]
        is_fitting = fits_host(self._peak, available, candidate.look(), running)
        if (gpu := candidate.slot.gpu) is not None and gpu.total:
            n_running = sum(each.slot.gpu == gpu for each in busy)
            is_fitting &= fits_gpu(self._gpu_peak, gpu.total - gpu.used, n_running)
        if not is_fitting and not self._is_told:
            self._is_told = True
            needs = [f"{format_bytes(self._peak)} of memory"]
            needs += [f"{format_bytes(self._gpu_peak)} of GPU memory"] if self._gpu_peak else []
            self._show(
                f"nanolm: {len(busy)} instead of {len(self._slots)} jobs run at a time, because the last job took "
                f"{' and '.join(needs)}"
            )
        return is_fitting

    def _with_news(self) -> list[Worker]:
        """Wait until workers have sent a message or ended, or for a while, and return these workers."""
        by_event = {each.connection: each for each in self._workers.values()}
        ended = {each.process.sentinel: each for each in self._workers.values()}
        found = wait([*by_event, *ended], timeout=INTERVAL)
        for each in self._busy():
            each.look()
        news = [by_event[event] if isinstance(event, Connection) else ended[event] for event in found]  # type: ignore[index]
        return list({id(each): each for each in news}.values())

    def _note_peak(self, each: Worker, gpu_memory: int) -> None:
        memory = each.look()
        self._peak = memory.peak if memory else 0
        self._gpu_peak = gpu_memory

    def _remove(self, each: Worker) -> str:
        """Remove a worker that has ended, and return how.

        Raises:
            SweepError: it is one of several that ended before they could run a job.
        """
        each.process.join()
        each.connection.close()
        del self._workers[each.slot.number]
        code = each.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        if not each.is_ready:
            self._n_failed_starts += 1
            if self._n_failed_starts >= MAX_ATTEMPTS:
                raise SweepError(
                    f"{MAX_ATTEMPTS} worker processes ended before their first job, the last one {how}",
                    where="hydra/launcher=local",
                    hint="its error is printed above; without a launcher, jobs run in this process",
                )
            return how
        if each.job is not None and each.memory is not None:
            self._peak = each.memory.peak
            how += f" at {format_bytes(each.memory.now)} of memory"
        return f"its process {each.process.pid} {how}"


def _start(slot: Slot, task: worker.Task, environment: Mapping[str, str]) -> Worker:
    """Start a worker process with its own environment variables, which libraries read at their import."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=worker.main, args=(theirs, task), name=f"worker {slot.number}")
    with _environment(environment), _without_interrupts():
        process.start()
    theirs.close()
    return Worker(slot, process, ours)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process, which a new one inherits, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for a new process until it has left the terminal, and for a moment here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
