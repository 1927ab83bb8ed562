"""Locks between processes.

A lock is a kernel lock (flock) on a file: it ends with its process, however that ends. Some network and cluster file
systems have none. With NANOLM_LOCK=soft, a lock is also a file PATH.soft, created exclusively, which names its process;
the kernel lock is then taken where there is one, so that both kinds exclude each other.

A soft lock whose process has ended is taken over on the same machine. Of a process on another machine that cannot be
known, and a person has to remove the file. A process that is stopped keeps its locks: nothing can prevent it from
writing when it continues.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import socket
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from nanolm import terminal
from nanolm.errors import PathError, SettingsError
from nanolm.files import NO_FOLLOW
from nanolm.lock_holders import Holder, kernel_holder
from nanolm.soft_locks import SOFT, is_abandoned, read_record, remove, soft_path, take

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    # Windows, whose locks filelock knows.
    fcntl = None

VARIABLE = "NANOLM_LOCK"

# Seconds between two attempts to take a lock, and until a waiting process names the one that it waits for.
POLL_INTERVAL = 0.05
PATIENCE = 5.0

_HELD_ELSEWHERE = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY}


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
            remove(soft_path(self.path), record)

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
                if not take(soft, record):
                    return False
                self._record = record
            is_taken = self._try_kernel_lock(is_soft)
            if is_taken and not is_soft and os.path.lexists(soft):
                # Another process may use soft locks; one that has ended is removed.
                record = Holder.of_this_process().format().encode()
                is_taken = take(soft, record)
                remove(soft, record)
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


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock, without taking it; nothing is written. True if it cannot be known."""
    soft = read_record(soft_path(path))
    if soft is not None and not is_abandoned(soft_path(path), soft):
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
    if (content := read_record(soft_path(path))) is not None:
        return Holder.parse(content)
    if (content := read_record(path)) and (found := Holder.parse(content)) is not None:
        return found
    return kernel_holder(path)


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
