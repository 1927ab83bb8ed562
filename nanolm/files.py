"""Safe file access: atomic replacement, no writes through unexpected links, `~` in paths."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

# Windows has neither flag; lstat is the only check against FIFOs and links there.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

# First part of the name of the temporary file that `replacing` writes.
REPLACEMENT = "nanolm"

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def user_path(path: str | os.PathLike[str]) -> Path:
    """Expand `~` and a leading `~/` of a path that a user typed to the home folder.

    A `Path` is returned unchanged, as is `~` if the home folder is unknown.
    """
    if isinstance(path, str) and (path == "~" or path.startswith(("~/", f"~{os.sep}"))):
        with contextlib.suppress(RuntimeError):
            return Path.home() / path[2:]
    return Path(path)


def write_durably(path: Path, content: bytes) -> None:
    """Write a regular file atomically and durably: a crash leaves the old content or the new.

    An existing file keeps its mode; a new one gets the default mode of `open`.

    Raises:
        OSError: it cannot be written, or the path is a link or another special file.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file that replaces `path` at the end of the block; an error removes it.

    Raises:
        OSError: it cannot be created, or `path` is a link or another special file.
    """
    before = _status_of_regular(path)
    remove_abandoned(path.parent, REPLACEMENT)
    # A private file stays private while its new content is written.
    temporary, descriptor = create_temporary(path, 0o666 if before is None else 0o600)
    try:
        if before is not None:
            _copy_ownership(descriptor, before)
        if fcntl is None:
            # Windows does not rename an open file.
            os.close(descriptor)
        with _named(path, temporary):
            yield temporary
            temporary.replace(path)
    finally:
        if fcntl is not None:
            # Nothing was written through it.
            with contextlib.suppress(OSError):
                os.close(descriptor)
        # What cannot be removed is left to the next writer.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def create_temporary(path: Path, mode: int = 0o666) -> tuple[Path, int]:
    """Create a temporary file in the folder of another one, and return it with its open descriptor.

    While the descriptor is open, `remove_abandoned` of another process leaves the file alone.
    """
    while True:
        # A name derived from the file's own could be too long.
        temporary = temporary_sibling(path.with_name(REPLACEMENT))
        with _named(path, temporary):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, mode)
        if hold(descriptor):
            return temporary, descriptor
        os.close(descriptor)


@contextlib.contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Let an OSError name the file or folder that a temporary one replaces."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(temporary):
            error.filename = str(path)
        raise


def hold(descriptor: int) -> bool:
    """Lock a new temporary file or folder until it is closed; return False if it was removed before."""
    if fcntl is None:
        return True
    # Some network file systems have no locks, and then `remove_abandoned` does nothing.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return os.fstat(descriptor).st_nlink > 0


def open_held_folder(path: Path) -> int | None:
    """Open and lock a new temporary folder, which is created again if it was removed; None on Windows."""
    if fcntl is None:
        return None
    while True:
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            if hold(descriptor):
                return descriptor
            os.close(descriptor)
        path.mkdir()


def remove_abandoned(folder: Path, name: str) -> None:
    """Remove the temporary files and folders that killed processes left.

    Their owners lock them, and the kernel releases the locks of a process that has ended.

    Args:
        name: the name that `temporary_sibling` was given, as a regular expression.
    """
    if fcntl is None:
        return
    pattern = re.compile(rf"\.(?:{name})\.[0-9a-f]{{16}}\.tmp")
    with contextlib.suppress(OSError):
        for path in [folder / name for name in os.listdir(folder) if pattern.fullmatch(name)]:  # noqa: PTH208
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                        remove_tree(path)
                    else:
                        path.unlink()
                finally:
                    os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is flushed to disk and gets its name at the end of the block.

    An error removes it, and the parents that were created for it. A killed process leaves a hidden folder, which the
    next call in the same parent removes.

    Args:
        path: the folder to create.

    Raises:
        OSError: it cannot be created, or `path` exists.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, REPLACEMENT)
    temporary = temporary_sibling(path.with_name(REPLACEMENT))
    with _named(path, temporary):
        temporary.mkdir()
        descriptor = open_held_folder(temporary)
    try:
        with _named(path, temporary):
            yield temporary
            sync_folder(temporary)
            # An empty folder would be replaced.
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            temporary.rename(path)
        sync_folder(path.parent)
    except BaseException:
        remove_tree(temporary, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_replacement(path: Path) -> bool:
    """Return whether a file is named as the temporary files of `replacing`, which a killed process leaves."""
    return re.fullmatch(rf"\.{REPLACEMENT}\.[0-9a-f]{{16}}\.tmp", path.name) is not None


def temporary_sibling(path: Path) -> Path:
    """Return an unpredictable, hidden name in the same folder, ending with .tmp."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def open_regular(path: Path, mode: str, *, is_buffered: bool = True) -> IO[Any]:
    """Open a regular file for writing without following links; a missing file is created, and text is UTF-8.

    A file with several hard links is first replaced by a copy, so that its other names keep their content.

    Raises:
        OSError: it cannot be opened, or is a link or another special file.
    """
    before = _status_of_regular(path)
    if before is not None and before.st_nlink > 1:
        write_durably(path, path.read_bytes())

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | NO_FOLLOW, 0o666)

    encoding = None if "b" in mode else "utf-8"
    file = open(path, mode, -1 if is_buffered else 0, encoding, opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise not_regular(path, kind_of(path))
    return file


def disk_time(folder: Path) -> float:
    """Return the time by the clock that dates the files in a folder, in seconds since 1970.

    On a network drive it is the server's, and the clocks of the machines may differ from it by minutes. A folder that
    does not exist has the clock of its parent. Where nothing can be written, it is the time of this machine.
    """
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"x")
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def write_text(path: Path, text: str) -> None:
    """Write a regular file in place; raises OSError as `open_regular` does."""
    with open_regular(path, "w") as file:
        file.write(text)


def wrong_file_types(folder: Path, files: Iterable[Path], folders: Iterable[Path]) -> list[str]:
    """Describe paths below a folder that are links or otherwise of the wrong type.

    Args:
        folder: folder that the names in the result are relative to.
        files: paths that must be regular files or missing.
        folders: paths that must be folders or missing.

    Returns:
        For each wrong path its name and type, such as "metrics.jsonl is a symbolic link".
    """
    wanted = [(path, stat.S_IFREG) for path in files] + [(path, stat.S_IFDIR) for path in folders]
    found = []
    for path, kind in wanted:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_IFMT(path.lstat().st_mode) != kind:
                found.append(f"{path.relative_to(folder)} is {kind_of(path)}")
    return found


def remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder and its contents; for a link, the link only.

    Raises:
        OSError: a file cannot be removed, unless errors are ignored.
    """
    if not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(*[OSError] if ignore_errors else []):
        path.unlink()


def hash_prefix(path: Path, length: int) -> hashlib._Hash:
    """Compute the SHA-256 of the first `length` bytes of a file, as an object that can be updated with the rest.

    Raises:
        EOFError: the file is shorter.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0:
            block = file.read(min(length, 2**20))
            if not block:
                raise EOFError(f"{path} is {length} bytes shorter than expected")
            found.update(block)
            length -= len(block)
    return found


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk (not supported on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _status_of_regular(path: Path) -> os.stat_result | None:
    """Return the lstat of a regular file; None if nothing exists there.

    Raises:
        OSError: it is a link or another special file.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise not_regular(path, kind_of(path))
    return status


def not_regular(path: Path, kind: str) -> OSError:
    """Return the error for a path that is not a regular file, of a kind as in `kind_of`."""
    number = {"a symbolic link": errno.ELOOP, "a folder": errno.EISDIR}.get(kind, errno.EINVAL)
    return OSError(number, f"it is {kind}, not a regular file", str(path))


def kind_of(path: Path) -> str:
    """Return the type of a path with its article, such as "a symbolic link"."""
    return _KINDS.get(stat.S_IFMT(path.lstat().st_mode), "a special file")


def _copy_ownership(descriptor: int, before: os.stat_result) -> None:
    """Give a new file the owner and mode of the one that it replaces, as far as permitted."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, before.st_uid, before.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, before.st_mode & 0o777)
