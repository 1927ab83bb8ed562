"""Soft locks: files that are created exclusively and name the process that holds the lock."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from nanolm.files import NO_FOLLOW, create_temporary, disk_time
from nanolm.lock_holders import Holder
from nanolm.untrusted import read_inside

SOFT = "soft"

# Bytes of a lock file.
MAX_RECORD = 4096

# Seconds after which a lock file without content was left by a killed process: the content follows at once.
EMPTY_AGE = 60.0

_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}


def soft_path(path: Path) -> Path:
    """Return the file of a soft lock."""
    return path.with_name(f"{path.name}.{SOFT}")


def take(path: Path, record: bytes) -> bool:
    """Create the file of a soft lock, or replace one whose process has ended."""
    if _create(path, record):
        return True
    found = read_record(path)
    if found is None or not is_abandoned(path, found):
        return False
    # Of several processes that find it abandoned, one replaces it, and only while it is still the same.
    guard = path.with_name(f"{path.name}.next")
    if not take(guard, record):
        return False
    try:
        if read_record(path) != found:
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
    return read_record(path) == record


@contextlib.contextmanager
def _temporary_file(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a new file in the folder of a path, which is removed at the end unless it was renamed."""
    temporary, descriptor = create_temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if os.name == "nt":
                # Windows does not rename an open file.
                file.close()
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def remove(path: Path, record: bytes) -> None:
    """Remove the file of a soft lock if it is that of this process."""
    if read_record(path) == record:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def read_record(path: Path) -> bytes | None:
    """Return the content of a lock file, "?" if it cannot be read; None if there is none."""
    if not os.path.lexists(path):
        return None
    try:
        return read_inside(path, path.parent, MAX_RECORD)
    except FileNotFoundError:
        return None
    except OSError:
        return b"?" if os.path.lexists(path) else None


def is_abandoned(path: Path, content: bytes) -> bool:
    """Return whether the process that created a soft lock has ended."""
    if content:
        holder = Holder.parse(content)
        return holder is not None and holder.is_gone
    try:
        return disk_time(path.parent) - path.lstat().st_mtime > EMPTY_AGE
    except OSError:
        return False
