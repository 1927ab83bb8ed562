"""Locks between processes, and the processes that hold them.

A lock is a kernel lock (flock) on a file: it ends with its process, however that ends. Some network and cluster file
systems have none. With NANOLM_LOCK=soft, a lock is also a file PATH.soft, created exclusively, which names its process;
the kernel lock is then taken where there is one, so that both kinds exclude each other.

A soft lock whose process has ended is taken over on the same machine. Of a process on another machine that cannot be
known, and a person has to remove the file. A process that is stopped keeps its locks: nothing can prevent it from
writing when it continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import functools
import os
import re
import secrets
import shlex
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from nanolm import terminal
from nanolm.errors import PathError, SettingsError
from nanolm.files import NO_FOLLOW, create_temporary
from nanolm.json_text import dump_json, parse_object
from nanolm.untrusted import read_inside

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    # Windows, whose locks filelock knows.
    fcntl = None

VARIABLE = "NANOLM_LOCK"
SOFT = "soft"

# Seconds between two attempts to take a lock, and until a waiting process names the one that it waits for.
POLL_INTERVAL = 0.05
PATIENCE = 5.0

# Bytes of a lock file, and characters of the command in it.
MAX_RECORD = 4096
MAX_COMMAND = 500

# Seconds after which a lock file without content was left by a killed process: the content follows at once.
EMPTY_AGE = 60.0

_HELD_ELSEWHERE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY}
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}

_HOLDER = re.compile(r"process (\d{1,10}) on (\S{1,255}) since ([\w:.+-]{1,40}|unknown)(?: \((.*)\))?")


class LockTimeout(TimeoutError):
    """Another process holds the lock.

    Attributes:
        holder: that process; None if it is not known.
        hint: how to get the lock.
    """

    def __init__(self, path: Path) -> None:
        self.holder = holder_of(path)
        self.hint = release_hint(path, self.holder)
        super().__init__(errno.EAGAIN, f"it is locked by {describe(self.holder)}", str(path))


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as it is written to lock files.

    Attributes:
        since: when it took the lock.
        start: start time of the process in clock ticks since the machine started; 0 if unknown.
        boot, machine, namespace: the current start of the machine, the machine, and the process id namespace of a
            container; empty if unknown.
        token: a random text that differs for every lock taken.
    """

    process: int
    host: str
    since: str = "unknown"
    command: str = ""
    start: int = 0
    boot: str = ""
    machine: str = ""
    namespace: str = ""
    token: str = ""

    @classmethod
    def of_this_process(cls) -> Holder:
        """Return this process, as the holder of a new lock."""
        command = " ".join(" ".join(sys.argv[:8]).split())[:MAX_COMMAND]
        found = _look_up(os.getpid())
        return cls(
            os.getpid(),
            socket.gethostname(),
            datetime.datetime.now().isoformat(timespec="seconds"),
            command,
            found.start if found else 0,
            **_machine(),
            token=secrets.token_hex(8),
        )

    @classmethod
    def parse(cls, content: bytes) -> Holder | None:
        """Read the content of a lock file; None if it names no process."""
        first, _, rest = content.decode("utf-8", errors="replace").partition("\n")
        match = _HOLDER.fullmatch(first.strip())
        if match is None:
            return None
        known: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            known = parse_object(rest.encode())
        texts = {name: str(known.get(name) or "") for name in ("boot", "machine", "namespace", "token")}
        start = known.get("start")
        process, host, since, command = match.groups()
        return cls(int(process), host, since, command or "", start if isinstance(start, int) else 0, **texts)

    def format(self) -> str:
        """Return the content of a lock file: a line for people, and a line of JSON."""
        names = ("start", "boot", "machine", "namespace", "token")
        return f"{self}\n{dump_json({name: getattr(self, name) for name in names})}\n"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}" + (f" ({self.command})" * bool(self.command))

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended."""
        if not self._is_on_this_machine:
            return False
        here = _machine()
        if self.boot != here["boot"]:
            return bool(self.boot and here["boot"])
        if self.namespace != here["namespace"]:
            return False
        found = _look_up(self.process)
        return found is None or found.state in ("Z", "X") or bool(self.start and found.start not in (0, self.start))

    @property
    def is_stopped(self) -> bool:
        """Whether the process is known to be stopped, as by Ctrl-Z or SIGSTOP."""
        here = _machine()
        if not self._is_on_this_machine or (self.boot, self.namespace) != (here["boot"], here["namespace"]):
            return False
        found = _look_up(self.process)
        return found is not None and found.state == "T" and found.start == self.start

    @property
    def _is_on_this_machine(self) -> bool:
        return (self.host, self.machine) == (socket.gethostname(), _machine()["machine"])


class Lock:
    """A lock that one process holds at a time; it ends with the process.

    Args:
        path: the lock file, which stays when the lock is released. Its folder must exist.
        option: how to choose another folder, for the error.
    """

    def __init__(self, path: Path, option: str = "") -> None:
        self.path = path
        self._option = option
        self._descriptor: int | None = None
        self._record = b""
        self._filelock: Any = None

    def acquire(self, timeout: float | None = None, report: Callable[[str], None] = terminal.say) -> None:
        """Take the lock.

        Args:
            timeout: seconds to wait for another process to release it; None waits for as long as it takes.
            report: receives a message with the process that holds the lock, if it takes long.

        Raises:
            LockTimeout: another process holds it.
            PathError: the file system has no locks.
            SettingsError: NANOLM_LOCK has a wrong value.
            OSError: the lock file cannot be created.
        """
        started = time.monotonic()
        is_reported = False
        while not self._try():
            waited = time.monotonic() - started
            if timeout is not None and waited >= timeout:
                raise LockTimeout(self.path)
            if waited >= PATIENCE and not is_reported:
                is_reported = True
                report(f"nanolm: waiting for {describe_wait(self.path)}")
            time.sleep(POLL_INTERVAL)

    def release(self) -> None:
        """Release the lock; nothing happens if it is not held."""
        _HELD.discard(self)
        descriptor, self._descriptor = self._descriptor, None
        if fcntl is not None and descriptor is not None:
            # A child process may have inherited the descriptor.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            # Nothing was written through it, and the lock is released in any case.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        if self._filelock is not None:
            self._filelock.release()
        record, self._record = self._record, b""
        if record:
            _remove(soft_path(self.path), record)

    def forget(self) -> None:
        """Close the descriptor of a lock of the parent process, which keeps the lock."""
        descriptor, self._descriptor, self._record = self._descriptor, None, b""
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _try(self) -> bool:
        """Try to take the lock once."""
        soft = soft_path(self.path)
        is_taken = False
        try:
            if is_soft := uses_soft_locks():
                record = Holder.of_this_process().format().encode()
                if not _take(soft, record):
                    return False
                self._record = record
            is_taken = self._try_kernel_lock(is_soft)
            if is_taken and not is_soft and os.path.lexists(soft):
                # Another process may use soft locks; one that has ended is removed.
                record = Holder.of_this_process().format().encode()
                is_taken = _take(soft, record)
                _remove(soft, record)
        finally:
            if not is_taken:
                self.release()
        if is_taken:
            _HELD.add(self)
        return is_taken

    def _try_kernel_lock(self, is_soft: bool) -> bool:
        if fcntl is None:
            return self._try_filelock()
        is_new = not os.path.lexists(self.path)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | NO_FOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file.
            if os.path.lexists(self.path) and os.path.samestat(os.fstat(descriptor), os.lstat(self.path)):
                self._descriptor, descriptor = descriptor, -1
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                if is_soft:
                    return True
                if is_new:
                    self.path.unlink(missing_ok=True)
                raise self._unsupported(error) from error
            if error.errno not in _HELD_ELSEWHERE:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return False

    def _try_filelock(self) -> bool:
        from filelock import FileLock, Timeout

        self._filelock = FileLock(self.path, timeout=0)
        try:
            self._filelock.acquire()
        except Timeout:
            return False
        return True

    def _unsupported(self, error: OSError) -> PathError:
        folder = self.path.absolute().parent
        other = f"choose another folder with {self._option}" if self._option else "choose another folder"
        return PathError(
            f"the folder cannot be locked: {error.strerror or error}",
            where=str(folder),
            hint=f"its file system has no locks (flock): set {VARIABLE}={SOFT} for every process that uses the folder, "
            f"which then locks it by files (docs/runs.md); or {other}",
        )


# Locks held by this process. A child that lives longer must not hold them.
_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_HELD):
        lock.forget()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def uses_soft_locks() -> bool:
    """Return whether locks are files: NANOLM_LOCK=soft.

    Raises:
        SettingsError: it has another value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", SOFT):
        raise SettingsError(
            f"unknown kind of lock {value!r}", where=VARIABLE, hint=f"{VARIABLE}={SOFT}, or unset it for kernel locks"
        )
    return value == SOFT


def soft_path(path: Path) -> Path:
    """Return the file of a soft lock."""
    return path.with_name(f"{path.name}.{SOFT}")


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock, without taking it; nothing is written. True if it cannot be known."""
    soft = _read(soft_path(path))
    if soft is not None and not _is_abandoned(soft_path(path), soft):
        return True
    try:
        return _is_held_by_kernel(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno not in {*_NO_LOCKS, errno.ELOOP, errno.ENXIO}


def _is_held_by_kernel(path: Path) -> bool:
    if fcntl is None:
        from filelock import FileLock, Timeout

        try:
            path.lstat()
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | NO_FOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder_of(path: Path) -> Holder | None:
    """Return the process that holds a lock; None if it is not known."""
    if (content := _read(soft_path(path))) is not None:
        return Holder.parse(content)
    if (content := _read(path)) and (found := Holder.parse(content)) is not None:
        return found
    return _kernel_holder(path)


def describe(holder: Holder | None) -> str:
    """Describe the holder of a lock."""
    return str(holder) if holder else "an unknown process"


def describe_wait(path: Path) -> str:
    """Describe the process that this one waits for, with a hint."""
    holder = holder_of(path)
    return f"{describe(holder)}, which holds {path}\n  hint:  {release_hint(path, holder)}"


def release_hint(path: Path, holder: Holder | None) -> str:
    """Return what a person can do to get a lock that another process holds."""
    soft = soft_path(path)
    remove = f"remove the lock that it left: rm {shlex.quote(str(soft))}" if os.path.lexists(soft) else ""
    if holder is None:
        return f"if no process uses the folder, {remove}" if remove else "wait for it, or stop it"
    if holder.is_stopped:
        return f"it is stopped: `kill -CONT {holder.process}` continues it, `kill -9 {holder.process}` ends it"
    where = "" if holder.host == socket.gethostname() else f" on {holder.host}"
    return f"wait for it, or stop it{where}" + (f"; if it has ended, {remove}" if remove else "")


def _take(path: Path, record: bytes) -> bool:
    """Create the file of a soft lock, or replace one whose process has ended."""
    if _create(path, record):
        return True
    found = _read(path)
    if found is None or not _is_abandoned(path, found):
        return False
    # Of several processes that find it abandoned, one replaces it, and only while it is still the same.
    guard = path.with_name(f"{path.name}.next")
    if not _take(guard, record):
        return False
    try:
        if _read(path) != found:
            return False
        with _temporary_file(path, record) as temporary:
            temporary.replace(path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _create(path: Path, record: bytes) -> bool:
    """Create a file with its content, and return False if it exists."""
    with _temporary_file(path, record) as temporary:
        try:
            os.link(temporary, path)
            return True
        except FileExistsError:
            # NFS may report an error for a link that it has made.
            return temporary.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(record)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return _read(path) == record


@contextlib.contextmanager
def _temporary_file(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a new file in the folder of a path, which is removed at the end unless it was renamed."""
    temporary, descriptor = create_temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if fcntl is None:
                # Windows does not rename an open file.
                file.close()
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path: Path, record: bytes) -> None:
    """Remove the file of a soft lock if it is that of this process."""
    if _read(path) == record:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _read(path: Path) -> bytes | None:
    """Return the content of a lock file, "?" if it cannot be read; None if there is none."""
    if not os.path.lexists(path):
        return None
    try:
        return read_inside(path, path.parent, MAX_RECORD)
    except FileNotFoundError:
        return None
    except OSError:
        return b"?" if os.path.lexists(path) else None


def _is_abandoned(path: Path, content: bytes) -> bool:
    """Return whether the process that created a soft lock has ended."""
    if content:
        holder = Holder.parse(content)
        return holder is not None and holder.is_gone
    try:
        return time.time() - path.lstat().st_mtime > EMPTY_AGE
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class _Process:
    """State (a letter, as in proc(5)) and start time of a process; empty and 0 if unknown."""

    state: str = ""
    start: int = 0


def _look_up(process: int) -> _Process | None:
    """Look a process of this machine up; None if there is none."""
    if os.name == "nt":
        # There, signal 0 would end the process.
        return _Process()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:
        # It belongs to another user.
        pass
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return _Process(fields[0].decode(), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return _Process()


@functools.cache
def _machine() -> dict[str, str]:
    """Return what tells this machine, its current start and the container from others; empty if unknown."""
    found = {"boot": "/proc/sys/kernel/random/boot_id", "machine": "/etc/machine-id"}
    texts = {}
    for name, path in found.items():
        try:
            texts[name] = Path(path).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            texts[name] = ""
    try:
        texts["namespace"] = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        texts["namespace"] = ""
    return texts


def _kernel_holder(path: Path) -> Holder | None:
    """Return the process of this machine that holds a kernel lock (Linux)."""
    try:
        inode = path.lstat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        match = re.match(r"\d+: FLOCK +\w+ +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ", line)
        if match and int(match[2]) == inode and int(match[1]) > 0:
            found = _look_up(int(match[1]))
            return Holder(int(match[1]), socket.gethostname(), start=found.start if found else 0, **_machine())
    return None
