"""Requests to stop a run: by signals, by another thread, by a pruner."""

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
def test_stop_request_records_a_signal(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        assert stop.exit_status == 0
        assert not stop.is_requested(SINGLE_PROCESS)
        os.kill(os.getpid(), number)
        assert (stop.signal, stop.exit_status) == (number, status)
    assert signal.getsignal(number) is before


def test_stop_request_exits_at_a_second_signal() -> None:
    code = (
        "import os, signal, time\nfrom nanolm.training.stop import StopRequest\n"
        "with StopRequest():\n os.kill(os.getpid(), signal.SIGTERM)\n print('asked', flush=True)\n"
        " os.kill(os.getpid(), signal.SIGTERM)\n print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (143, "asked\n")


def test_stop_request_exits_only_for_repeated_sigterm_or_sigint() -> None:
    with StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGXCPU, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert stop.exit_status == 128 + signal.SIGHUP


def test_stop_request_leaves_an_ignored_signal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_stop_request_by_a_thread_is_not_a_first_signal() -> None:
    stop = StopRequest()
    assert not stop.is_active
    with stop:
        assert stop.is_active
        stop.request()
        assert stop.is_requested(SINGLE_PROCESS)
        assert stop.exit_status == 143
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.exit_status == 143
    assert not stop.is_active


def test_stop_request_by_a_pruner_has_no_signal() -> None:
    stop = StopRequest(should_prune=lambda step, loss: step >= 20 and loss > 2)
    for step, loss, is_pruned in ((10, 3.0, False), (20, 1.0, False), (30, 3.0, True)):
        stop.check_pruning(step, loss, SINGLE_PROCESS)
        assert stop.is_requested(SINGLE_PROCESS) is is_pruned
    assert (stop.signal, stop.exit_status) == (None, 0)


def test_stop_request_passes_a_second_signal_to_its_function() -> None:
    repeated = []
    before = signal.getsignal(signal.SIGINT)
    with StopRequest(on_repeated=repeated.append) as stop:
        stop.receive(signal.SIGINT)
        assert not repeated
        stop.receive(signal.SIGINT)
        # The handlers of the program are back, so that it can raise the signal again.
        assert signal.getsignal(signal.SIGINT) is before
    assert repeated == [signal.SIGINT]


def test_stop_request_of_a_left_loop_has_no_signal() -> None:
    stop = StopRequest()
    stop.leave()
    assert stop.is_requested(SINGLE_PROCESS)
    assert (stop.signal, stop.exit_status, stop.is_pruned) == (None, 0, False)
