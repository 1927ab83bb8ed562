import os
import signal
import subprocess
import sys

import pytest

from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.stop import StopRequest

POSIX = ("SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2")
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
SIGNALS += [(getattr(signal, name), 128 + getattr(signal, name)) for name in POSIX if hasattr(signal, name)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_asks(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert (stop.signal, stop.exit_status) == (number, status)
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal, time\nfrom nanolm.training.stop import StopRequest\n"
        "with StopRequest():\n os.kill(os.getpid(), signal.SIGTERM)\n print('asked', flush=True)\n"
        " os.kill(os.getpid(), signal.SIGTERM)\n print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "asked\n")


def test_only_a_repeated_sigterm_or_sigint_ends_at_once() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop.exit_status == 128 + signal.SIGHUP


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_may_ask_and_its_word_is_no_second_signal() -> None:
    assert StopRequest.current is None
    with StopRequest() as stop:
        assert StopRequest.current is stop
        stop.ask()
        assert stop.is_asked(SINGLE_PROCESS)
        assert stop.exit_status == 143
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_status == 143
    assert StopRequest.current is None
