"""A pool of worker processes on this machine, one in each slot, which are replaced when they die.

concurrent.futures gives up all jobs when a worker dies, and cannot give each worker its own environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from nanolm.errors import SweepError
from nanolm.machine import ProcessMemory, available_memory, process_memory, reset_peak
from nanolm.signals import without_interrupts
from nanolm.sweeps.handover import MAX_ATTEMPTS, LostJob
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.local import worker
from nanolm.sweeps.launchers.local.memory import fits_gpu, fits_host
from nanolm.sweeps.launchers.local.settings import Slot
from nanolm.sweeps.states import Report, State
from nanolm.wording import format_bytes

# Seconds between two looks at the memory of the workers and of the machine.
INTERVAL = 0.5


@dataclasses.dataclass
class Worker:
    """A worker process.

    Attributes:
        is_ready: whether it has imported everything.
        job: the number of the job that it runs.
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
        self._waiting: list[Request] = []
        self._cancelled: list[Request] = []
        self._n_failed_starts = 0
        # Of the last job: the largest memory of its process, and what it reserved on its GPU, in bytes.
        self._peak = 0
        self._gpu_peak = 0
        self._is_told = False

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        return len(self._slots)

    def start(self, requests: Sequence[Request]) -> None:
        """Queue jobs; they start during `ended`."""
        self._waiting = sorted([*self._waiting, *requests], key=lambda request: request.number)

    def ended(self, timeout: float) -> list[Ended]:
        """Run jobs until at least one has ended, at most for a number of seconds; return those that have ended.

        Raises:
            SweepError: worker processes end at their start.
            Exception: what the task raised.
        """
        found = [Ended(each.number, Report(State.new)) for each in self._cancelled]
        self._cancelled = []
        until = time.monotonic() + timeout
        while not found and (self._waiting or self._busy()):
            self._send_jobs()
            if (left := until - time.monotonic()) <= 0:
                break
            for each in self._with_news(left):
                found += self._receive(each)
        self._send_jobs()
        return found

    def _receive(self, each: Worker) -> list[Ended]:
        """Handle a message of a worker, or its end; return its job if that has ended."""
        job, message = each.job, each.receive()
        if isinstance(message, worker.Ready):
            each.is_ready, self._n_failed_starts = True, 0
            return []
        if isinstance(message, worker.Result):
            assert job is not None
            if message.error is not None:
                raise message.error
            each.job = None
            self._note_peak(each, message.gpu_memory)
            return [Ended(job, message.value)]
        problem = self._remove(each)
        return [] if job is None else [Ended(job, LostJob(problem))]

    def cancel_waiting(self) -> None:
        """Start none of the jobs that wait."""
        self._cancelled, self._waiting = [*self._cancelled, *self._waiting], []

    def stop_running(self) -> None:
        """The jobs that run find the stop file."""

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

    def _send_jobs(self) -> None:
        """Give jobs that wait to idle workers, as far as the memory suffices, and start workers for the others."""
        self._start_workers()
        for each in self._workers.values():
            if self._waiting and each.is_ready and each.job is None and self._fits(each):
                self._send(each, self._waiting.pop(0))

    def _start_workers(self) -> None:
        """Start as many workers as there are jobs that wait and free slots."""
        n_waiting = len(self._waiting)
        n_free = len(self._workers) - len(self._busy())
        for slot in self._slots:
            if slot.number not in self._workers and n_free < n_waiting:
                self._workers[slot.number] = _start(slot, self._task, {**self._environment, **slot.environment})
                n_free += 1

    def _send(self, each: Worker, request: Request) -> None:
        reset_peak(each.process.pid or 0)
        each.job = request.number
        # A process that has just died is removed when its end is noticed.
        with contextlib.suppress(OSError):
            each.connection.send(request)

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

    def _with_news(self, timeout: float) -> list[Worker]:
        """Wait until workers have sent a message or ended, or for a number of seconds, and return these workers."""
        by_event = {each.connection: each for each in self._workers.values()}
        ended = {each.process.sentinel: each for each in self._workers.values()}
        found = wait([*by_event, *ended], timeout=min(timeout, INTERVAL))
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
    with _environment(environment), without_interrupts():
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
