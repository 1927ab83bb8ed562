"""Signals that end a session: Ctrl-C, a closed terminal, a shutdown, a batch system's warning before its time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]

# People and service managers repeat these when they lose patience: the second one ends a process at once.
REPEATED = (signal.SIGTERM, signal.SIGINT)

# Those that systems send on their own, often together or again and again: SIGHUP (a closed terminal), SIGXCPU (a
# limit of CPU time), SIGUSR1 and SIGUSR2 (Slurm's --signal), SIGBREAK (a closed console on Windows).
OTHERS = ("SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGBREAK")


class Stopped(BaseException):
    """A signal came where no run is being trained. It passes Hydra and the launchers, which catch exceptions."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def ending() -> list[int]:
    """The signals to handle: SIGTERM, SIGINT, and of the others those that would end this process as things stand.

    An ignored signal stays ignored (nohup), and one that a library has taken stays with it (submitit's SIGUSR2).
    """
    numbers = [int(getattr(signal, name)) for name in OTHERS if hasattr(signal, name)]
    ours = [number for number in numbers if _is_ours(signal.getsignal(number))]
    return [*map(int, REPEATED), *ours]


def _is_ours(handler: Any) -> bool:
    module = getattr(handler, "__module__", None) or ""
    return handler is signal.SIG_DFL or module.split(".")[0] == "nanolm"


@contextlib.contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Call a handler for every signal that ends a session. Does nothing outside the main thread."""
    before = install(handler)
    try:
        yield
    finally:
        restore(before)


def install(handler: Handler) -> dict[int, Any]:
    """Set the handler of every signal that ends a session.

    Returns:
        What handled each of them before, for `restore`; nothing outside the main thread, where Python allows none.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in ending()}


def restore(before: dict[int, Any]) -> None:
    """Give signals their earlier handlers back."""
    for number, handler in before.items():
        # None: the handler was not set from Python.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise Stopped for the first signal, so that files and locks are released; a second SIGTERM ends at once.

    SIGINT stays with Python, which raises KeyboardInterrupt. In a child process that was forked in here, signals have
    their usual effect.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in before:
            signal.signal(other, signal.SIG_DFL if other in REPEATED else signal.SIG_IGN)
        raise Stopped(number)

    before = install(stop)
    interrupt = before.pop(signal.SIGINT, None)
    if interrupt is not None:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        restore(before)
