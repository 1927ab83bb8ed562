"""A worker process of hydra/launcher=local: it imports once and runs one job after another.

It ends when the pool closes the connection. If the process of the pool dies, it gets a SIGTERM, so that a job that
runs saves a checkpoint and the next command resumes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from nanolm.sweeps.launchers.engine import Request


class Task(Protocol):
    """The work of a process; it is pickled into it."""

    def prepare(self) -> None:
        """Import what every job needs."""

    def __call__(self, request: Request) -> Any:
        """Run a job and return its result."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        value: what the task returned.
        error: what it raised instead; a job of a sweep raises nothing once it has started.
        gpu_memory: the most memory of the GPU that PyTorch reserved for it, in bytes; 0 without a GPU.
    """

    value: Any = None
    error: Exception | None = None
    gpu_memory: int = 0


class Ready:
    """Sent once, when the process can run jobs."""


def main(connection: Connection, task: Task) -> None:
    """Run jobs until the connection is closed."""
    # The terminal's Ctrl-C is for the driver, which stops its jobs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task.prepare()
    # The other side has closed the connection, or is dead.
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(Ready())
        while True:
            request = connection.recv()
            try:
                result = Result(task(request), gpu_memory=_take_gpu_memory())
            except Exception as error:
                result = Result(error=error)
            connection.send(result)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _take_gpu_memory() -> int:
    """Return the peak of the memory that PyTorch reserved on the GPU, reset it, and free what is not in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    peak = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return peak
