"""Messages about processes that a sweep waits for."""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanolm.config.budget import Budget
from nanolm.lock_holders import Holder
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.states import State, read_run
from nanolm.sweeps.waiting import LOG, SILENT, STOPPED, Waits
from tests.helpers import SMALL, Nanolm, has_reached_step, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc shows which processes are stopped")

CLAIM = """
import sys
from nanolm.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]).claim():
    print("claimed", flush=True)
    sys.stdin.read()
"""


class Recorded:
    """Waits with a clock that is set by hand, and the messages."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.seconds = 0.0
        self.said: list[str] = []
        self.waits = Waits(run.path.parent, self.said.append, lambda: time.time() + self.seconds)

    def after(self, seconds: float) -> list[str]:
        """Check the run after it was silent for so long, and return all messages so far."""
        self.seconds = seconds
        self.waits.check("the job", self.run.lock, (self.run.lock, self.run.metrics))
        return self.said


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "sweep" / "job-0123456789")


@pytest.fixture(params=["", "soft"])
def holder(request: pytest.FixtureRequest, run: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run."""
    command = [sys.executable, "-c", CLAIM, str(run.path)]
    environment = {**os.environ, "NANOLM_LOCK": request.param}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_stopped_process_is_reported_once(holder: subprocess.Popen[str], run: RunDirectory) -> None:
    recorded = Recorded(run)
    assert recorded.after(STOPPED + 5) == [], "it runs"
    holder.send_signal(signal.SIGSTOP)
    found = run.holder()
    assert found is not None
    while not found.is_stopped:
        time.sleep(0.001)
    assert recorded.after(STOPPED - 5) == []
    (text,) = recorded.after(STOPPED + 5)
    expected = f"nanolm: waiting for the job: process {holder.pid} on {socket.gethostname()} since"
    assert text.startswith(expected)
    assert "is stopped, and has written nothing for 15 s" in text
    assert f"`kill -CONT {holder.pid}` continues it, `kill -9 {holder.pid}` ends it" in text
    assert len(recorded.after(SILENT + 5)) == 1
    log = (run.path.parent / LOG).read_text()
    assert log.count("waiting for the job") == 1
    assert read_run(run, Budget("max_steps", 10)).state is State.running
    holder.kill()
    while run.is_claimed():
        time.sleep(0.001)
    assert read_run(run, Budget("max_steps", 10)).state is State.new, "the job can be taken"


def test_a_silent_process_of_another_machine_is_reported(run: RunDirectory) -> None:
    run.path.mkdir(parents=True)
    run.soft_lock.write_text(Holder(77, "elsewhere").format())
    run.lock.touch()
    recorded = Recorded(run)
    assert recorded.after(SILENT - 5) == []
    (text,) = recorded.after(SILENT + 5)
    assert "process 77 on elsewhere since unknown has written nothing for 10 min" in text
    assert f"stop it on elsewhere; if it has ended, remove the lock that it left: rm {run.soft_lock}" in text
    assert "kill" not in text
    run.metrics.touch()
    os.utime(run.metrics, (time.time() + 2 * SILENT, time.time() + 2 * SILENT))
    assert len(recorded.after(3 * SILENT)) == 1


def test_a_wait_that_cannot_be_logged_is_reported(run: RunDirectory) -> None:
    run.path.mkdir(parents=True)
    run.lock.touch()
    (run.path.parent / LOG).symlink_to("victim")
    (text,) = Recorded(run).after(SILENT + 5)
    assert "an unknown process has written nothing" in text
    assert not (run.path.parent / "victim").exists()


def read_terminal(descriptor: int, until: Callable[[str], bool], seconds: float = 100) -> str:
    """Read a terminal until its text satisfies a condition."""
    text = ""
    deadline = time.monotonic() + seconds
    while not until(text):
        assert time.monotonic() < deadline, text
        if select.select([descriptor], [], [], 1)[0]:
            text += os.read(descriptor, 4096).decode(errors="replace")
    return text


@pytest.mark.slow
def test_a_sweep_names_a_stopped_one_and_takes_its_job_when_it_has_ended(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (*SMALL, "model=bigram", "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=3000")
    command = ("train", "-m", *overrides, "trainer.log_every=1", "trainer.save_every=50", "trainer.eval_every=3000")
    first = nanolm.start(*command)
    folder = nanolm.folder / "outputs" / "sweep"
    wait_until(lambda: any(has_reached_step(RunDirectory(path), 100) for path in folder.glob("*-*/")), first)
    os.kill(first.pid, signal.SIGSTOP)
    terminal, other = pty.openpty()
    again = [sys.executable, "-m", "nanolm", *command]
    second = subprocess.Popen(again, cwd=nanolm.folder, env=nanolm.environment, stderr=other, stdout=other)
    os.close(other)
    text = read_terminal(terminal, lambda text: "taken over only when" in text)
    assert f"process {first.pid} on {socket.gethostname()}" in text
    assert f"kill -9 {first.pid}" in text
    os.kill(first.pid, signal.SIGKILL)
    read_terminal(terminal, lambda text: "1 completed" in text)
    assert second.wait(100) == 0
    os.close(terminal)
    (run,) = folder.glob("*-*/")
    steps = [row.step for row in RunDirectory(run).read_metrics("train")]
    assert steps == sorted(set(steps)), "no step is repeated"
