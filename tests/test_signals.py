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
    """Every signal as it was, whatever a test does."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", *POSIX)]
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signals.restore(before)


@pytest.mark.parametrize("name", ["SIGTERM", *POSIX])
def test_a_signal_is_raised_and_its_handler_restored(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped, signals.raised():
        signal.raise_signal(number)
    assert stopped.value.number == number
    assert signal.getsignal(number) is before


def test_an_ignored_or_taken_signal_is_left_alone() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda number, frame: None)
    with signals.raised():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR2)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_one_handler_of_ours_takes_the_place_of_another() -> None:
    heard: list[int] = []
    with signals.raised(), signals.handled(lambda number, frame: heard.append(number)):
        signal.raise_signal(signal.SIGHUP)
    assert heard == [signal.SIGHUP]


def test_ctrl_c_stays_an_interrupt() -> None:
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


def test_a_forked_child_ends_by_the_signal_itself() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{-signal.SIGTERM}\n"
