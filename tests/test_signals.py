import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nanolm import signals
from nanolm.signals import Stopped

POSIX = [name for name in ("SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


@pytest.fixture(autouse=True)
def dispositions() -> Iterator[None]:
    """Restore every signal handler after a test."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", *POSIX)]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signals.restore(before)


@pytest.mark.parametrize("name", ["SIGTERM", *POSIX])
def test_raised_raises_stopped_and_restores_the_handler(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, signals.raised():
        signal.raise_signal(number)
    assert stopped.value.number == number
    assert signal.getsignal(number) is before


def test_raised_leaves_ignored_and_foreign_handlers() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    with signals.raised():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_nanolm_handler_replaces_another_nanolm_handler() -> None:
    received: list[int] = []
    with signals.raised():
        previous = signals.install(lambda number, frame: received.append(number))
        signal.raise_signal(signal.SIGHUP)
        signals.restore(previous)
    assert received == [signal.SIGHUP]


def test_raised_keeps_ctrl_c_a_keyboard_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), signals.raised():
        signal.raise_signal(signal.SIGINT)


FORK = """
import os, signal
from nanolm import signals
with signals.raised():
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_raised_does_not_apply_to_a_forked_child() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{-signal.SIGTERM}\n"
