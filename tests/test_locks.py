"""Locks: of the kernel, by files where there are none, and of processes that have ended, stopped or run elsewhere."""

import dataclasses
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanolm import locks
from nanolm.errors import BusyError, PathError, SettingsError
from nanolm.lock_holders import Holder
from nanolm.locks import Lock, LockTimeout, holder_of, is_held
from nanolm.runs.directory import RunDirectory
from nanolm.soft_locks import soft_path
from tests.faults import injection
from tests.faults.injection import Faults

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kernel locks of Unix")

HOLD = """
import sys
from pathlib import Path
from nanolm.locks import Lock
with Lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

# Lets four processes take each lock at the same moment, and prints how many get it.
RACE = """
import os, sys
from pathlib import Path
from nanolm.locks import Lock

# The kernel lock would decide the race.
Lock._try_kernel_lock = lambda self, is_soft: True
for number in range(int(sys.argv[2])):
    lock = Lock(Path(sys.argv[1]) / f"lock{number}")
    (read_go, go), (result, write_result), (read_end, end) = os.pipe(), os.pipe(), os.pipe()
    for _ in range(4):
        if os.fork() == 0:
            os.close(go), os.close(end)
            os.read(read_go, 1)
            os.write(write_result, b"1" if lock._try() else b"0")
            os.read(read_end, 1)
            lock.release()
            os._exit(0)
    os.close(go)
    results = b""
    while len(results) < 4:
        results += os.read(result, 4)
    os.close(end)
    for _ in range(4):
        os.wait()
    for descriptor in (read_go, result, write_result, read_end):
        os.close(descriptor)
    print(results.count(b"1"))
"""

# Claims a run twice, and prints what happens.
CLAIM = """
import sys
from nanolm.errors import NanolmError
from nanolm.runs.directory import RunDirectory
run = RunDirectory(sys.argv[1])
try:
    with run.claim():
        print("claimed", run.is_claimed(), run.soft_lock.exists())
        with RunDirectory(run.path).claim():
            print("claimed twice")
except NanolmError as error:
    print(type(error).__name__, error)
print(run.is_claimed(), run.path.parent.exists())
"""


@pytest.fixture
def soft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_LOCK", "soft")


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts a process which holds a lock."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return injection.build(tmp_path_factory.mktemp("faults"))


def claim_without_flock(library: Path, tmp_path: Path, number: int, **environment: str) -> str:
    faults = Faults(library, tmp_path, tmp_path / "counter")
    failing = faults.environment(1, errno=number, last=1000, calls=("flock",))
    run = tmp_path / "outputs" / "run"
    done = subprocess.run(
        [sys.executable, "-c", CLAIM, str(run)],
        env={**os.environ, **failing, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_failing_flock_is_explained_and_leaves_no_folder(number: int, library: Path, tmp_path: Path) -> None:
    text = claim_without_flock(library, tmp_path, number)
    assert f"PathError the folder cannot be locked: {os.strerror(number)}" in text
    assert f"where: {tmp_path / 'outputs' / 'run'}" in text
    assert "NANOLM_LOCK=soft" in text
    assert text.endswith("False False\n")


def test_soft_locks_work_without_flock(library: Path, tmp_path: Path) -> None:
    text = claim_without_flock(library, tmp_path, errno.ENOLCK, NANOLM_LOCK="soft")
    assert text.startswith("claimed True True\nBusyError another process writes to this run: process ")
    assert text.endswith("False False\n"), "nothing is left"


@pytest.mark.parametrize("first", ["", "soft"])
@pytest.mark.parametrize("second", ["", "soft"])
def test_locks_of_both_kinds_exclude_each_other(
    first: str, second: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOLM_LOCK", first)
    path = tmp_path / "lock"
    with Lock(path):
        monkeypatch.setenv("NANOLM_LOCK", second)
        assert is_held(path)
        with pytest.raises(LockTimeout):
            Lock(path).acquire(timeout=0)
        assert is_held(path)
    assert not is_held(path)
    with Lock(path):
        assert is_held(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("kind", ["", "soft"])
def test_the_lock_of_a_killed_process_is_free(
    kind: str, hold: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOLM_LOCK", kind)
    path = tmp_path / "lock"
    process = hold(path)
    found = holder_of(path)
    assert found is not None
    assert (found.process, found.host) == (process.pid, socket.gethostname())
    assert not found.is_gone
    assert not found.is_stopped
    process.send_signal(signal.SIGSTOP)
    while not found.is_stopped:
        time.sleep(0.001)
    with pytest.raises(LockTimeout) as caught:
        Lock(path).acquire(timeout=0)
    assert f"`kill -CONT {process.pid}` continues it, `kill -9 {process.pid}` ends it" in caught.value.hint
    process.kill()
    # The process is a zombie until its exit status is read.
    while is_held(path):
        time.sleep(0.001)
    monkeypatch.setenv("NANOLM_LOCK", "")
    with Lock(path):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


def lock_of(path: Path, **changes: object) -> Path:
    """Write the soft lock of this process with changes."""
    found = dataclasses.replace(Holder.of_this_process(), **changes)  # type: ignore[arg-type]
    soft_path(path).write_text(found.format())
    return path


@pytest.mark.parametrize(
    "changes", [{"start": 1}, {"boot": "another"}, {"process": 2**22 + 1}, {"boot": "another", "namespace": "x"}]
)
def test_soft_locks_of_ended_processes_are_taken_over(
    changes: dict[str, object], soft: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lock_of(tmp_path / "lock", **changes)
    assert not is_held(path)
    with Lock(path):
        holder = holder_of(path)
        assert holder is not None
        assert holder.process == os.getpid()
        assert not holder.is_gone
    lock_of(path, **changes)
    monkeypatch.delenv("NANOLM_LOCK")
    with Lock(path):
        assert not soft_path(path).exists()


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"machine": "another", "boot": "another"}, {"namespace": "pid:[1]"}, {}]
)
def test_soft_locks_of_other_machines_are_kept(changes: dict[str, object], soft: None, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    lock_of(run.lock, process=1, **{"start": 0, **changes})
    assert run.is_claimed()
    with pytest.raises(BusyError, match=r"process 1 on .* since") as caught, run.claim():
        pass
    assert f"rm {run.soft_lock}" in caught.value.hint
    assert "kill" not in caught.value.hint
    assert [entry.name for entry in run.path.iterdir()] == [run.soft_lock.name]
    run.soft_lock.unlink()
    with run.claim():
        assert run.is_claimed()


@pytest.mark.parametrize(
    "content",
    [b"notes", b"process 99999999999 on a since b", b"\xff" * 9, b"x" * 10**6, b"process 1\x1b on a since b"],
)
def test_damaged_soft_locks_are_kept(content: bytes, soft: None, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    soft_path(path).write_bytes(content)
    assert is_held(path)
    with pytest.raises(LockTimeout) as caught:
        Lock(path).acquire(timeout=0)
    assert caught.value.holder is None
    assert "if no process uses the folder, remove the lock that it left: rm" in caught.value.hint
    assert soft_path(path).read_bytes() == content


def test_soft_locks_that_are_no_files_are_kept(soft: None, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")):
        make(soft_path(path))
        with pytest.raises(LockTimeout):
            Lock(path).acquire(timeout=0)
        assert is_held(path)
        soft_path(path).rename(tmp_path / f"kept-{make}")


def test_soft_locks_work_without_hard_links(soft: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", fail)
    path = tmp_path / "lock"
    with Lock(path):
        assert is_held(path)
        with pytest.raises(LockTimeout):
            Lock(path).acquire(timeout=0)
    # Killed between creating and writing.
    soft_path(path).touch()
    assert is_held(path)
    with monkeypatch.context() as patched:
        # The clock of this machine is ahead of that of the disk.
        ahead = time.time() + 300.0
        patched.setattr(time, "time", lambda: ahead)
        assert is_held(path)
    os.utime(soft_path(path), (0, 0))
    assert not is_held(path)
    with Lock(path):
        assert is_held(path)


@pytest.mark.parametrize("n_rounds", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_exactly_one_of_racing_processes_takes_an_abandoned_lock(n_rounds: int, soft: None, tmp_path: Path) -> None:
    abandoned = dataclasses.replace(Holder.of_this_process(), start=1).format()
    for number in range(n_rounds):
        path = soft_path(tmp_path / f"lock{number}")
        path.write_text(abandoned)
        if number % 3 == 1:
            # A process was killed while it took the lock over.
            path.with_name(f"{path.name}.next").write_text(abandoned)
        elif number % 3 == 2:
            path.unlink()
    done = subprocess.run([sys.executable, "-c", RACE, str(tmp_path), str(n_rounds)], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == ["1"] * n_rounds
    assert not list(tmp_path.iterdir()), "the winner releases its lock"


def test_a_forked_child_does_not_hold_or_release_the_lock(soft: None, tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    lock.acquire()
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert soft_path(lock.path).exists()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    lock.release()
    assert not is_held(lock.path), "the child that still runs does not hold it"
    os.close(write)
    os.waitpid(child, 0)


def test_waiting_names_the_process_once(
    hold: Callable[..., subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.02)
    process = hold(tmp_path / "lock")
    said: list[str] = []
    with pytest.raises(LockTimeout):
        Lock(tmp_path / "lock").acquire(timeout=0.1, report=said.append)
    assert len(said) == 1
    assert f"nanolm: waiting for process {process.pid} on {socket.gethostname()}" in said[0]


def test_an_unknown_kind_of_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_LOCK", "hard")
    with pytest.raises(SettingsError, match=r"unknown kind of lock 'hard'[\s\S]*NANOLM_LOCK=soft"):
        Lock(tmp_path / "lock").acquire()
    with pytest.raises(SettingsError), RunDirectory(tmp_path / "outputs" / "run").claim():
        pass
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_disk_are_not_taken_for_a_lock(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "gone" / "lock").acquire()
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Lock(tmp_path / "lock").acquire()
    assert not (tmp_path / "elsewhere").exists()
    assert not issubclass(LockTimeout, PathError)
