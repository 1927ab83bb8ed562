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

# Users and service managers repeat these when a process does not end: the second one ends it at once.
REPEATED = (signal.SIGTERM, signal.SIGINT)

# Sent by the system, often repeatedly: SIGHUP (a closed terminal), SIGXCPU (a CPU time limit), SIGUSR1 and SIGUSR2
# (Slurm's --signal), SIGBREAK (a closed console on Windows).
OTHERS = ("SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGBREAK")


class Stopped(BaseException):
    """A signal was received outside of training. Not an Exception, because Hydra and its launchers catch those."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def install(handler: Handler) -> dict[int, Any]:
    """Set the handler of SIGTERM, SIGINT and, of the others, the signals that would end this process now.

    Ignored signals (nohup) and signals with a library's handler (submitit's SIGUSR2) are left alone.

    Returns:
        The previous handlers, for `restore`; empty outside the main thread, where Python does not allow handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    others = (int(getattr(signal, name)) for name in OTHERS if hasattr(signal, name))
    numbers = [*map(int, REPEATED), *(number for number in others if _is_ours(signal.getsignal(number)))]
    return {number: signal.signal(number, handler) for number in numbers}


def _is_ours(handler: Any) -> bool:
    module = getattr(handler, "__module__", None) or ""
    return handler is signal.SIG_DFL or module.split(".")[0] == "nanolm"


def restore(previous: dict[int, Any]) -> None:
    """Restore signal handlers that `install` replaced."""
    for number, handler in previous.items():
        # None: the handler was not set from Python.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise Stopped for the first signal, so that files and locks are released; a second SIGTERM ends at once.

    SIGINT is left to Python, which raises KeyboardInterrupt. In a process forked inside the context, signals have
    their default effect.
    """
    process = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in previous:
            signal.signal(other, signal.SIG_DFL if other in REPEATED else signal.SIG_IGN)
        raise Stopped(number)

    previous = install(stop)
    interrupt = previous.pop(signal.SIGINT, None)
    if interrupt is not None:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        restore(previous)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Block Ctrl-C for new processes, until they unblock it, and for a moment here."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
