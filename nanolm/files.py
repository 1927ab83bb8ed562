"""Paths as users type them, and safe writes: atomic where a file is replaced, and never through unchosen links."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from nanolm.errors import SettingsError, explain_os_error

# Windows has neither: opening a FIFO and following a link are checked by lstat alone there.
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

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
    """The path that a user typed. `~` and a leading `~/` are the home folder; anything else stands as it is.

    A `Path` is taken to be one already. Where the system knows no home folder, `~` stays as it is.
    """
    if isinstance(path, str) and (path == "~" or path.startswith(("~/", f"~{os.sep}"))):
        with contextlib.suppress(RuntimeError):
            return Path.home() / path[2:]
    return Path(path)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a regular file, or create it, so that a crash leaves the old content or the new, never a part.

    A file that is replaced keeps its mode; a new one gets the mode that `open` would give it.

    Raises:
        OSError: it cannot be written, or there is something other than a regular file, a link included.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty temporary file beside `path`, which takes its place at the end; on an error it is removed.

    Raises:
        OSError: it cannot be created, or `path` is something other than a regular file, a link included.
    """
    before = _status_of_regular(path)
    # The file's own name may be too long to be part of another one.
    temporary = temporary_sibling(path.with_name("nanolm"))
    # A private file stays private while its new content is written.
    mode = 0o666 if before is None else 0o600
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOW, mode)
    try:
        try:
            if before is not None:
                _copy_ownership(descriptor, before)
        finally:
            os.close(descriptor)
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_sibling(path: Path) -> Path:
    """A name beside `path` that nobody can predict: hidden, and ending with .tmp."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def open_regular(path: Path, mode: str) -> IO[Any]:
    """Open a regular file of a run directory for writing, created if it does not exist, without following links.

    A file with hard links is replaced by a copy first, so that the file's other names keep their content.

    Args:
        mode: as of `open`; text is UTF-8.

    Raises:
        OSError: it cannot be opened, or is something other than a regular file, a link included.
    """
    before = _status_of_regular(path)
    if before is not None and before.st_nlink > 1:
        write_durably(path, path.read_bytes())

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _NO_FOLLOW, 0o666)

    file = open(path, mode, encoding=None if "b" in mode else "utf-8", opener=opener)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path, _kind_of(path))
    return file


def write_text(path: Path, text: str) -> None:
    """Write a regular file in place, without following links.

    Raises:
        OSError: as open_regular.
    """
    with open_regular(path, "w") as file:
        file.write(text)


def write_output_file(flag: str, path: Path, content: bytes, *, follow_links: bool = True) -> None:
    """Write the file that a flag of the command line names.

    A regular file is replaced atomically. Anything else that can be written to, such as a device or a FIFO, is written
    in place, and so is a descriptor of this process (/dev/stdout).

    Args:
        follow_links: whether a link is followed to the file that it names, as for a file that the user named; False
            refuses it, as for a file in a folder that the user named.

    Raises:
        SettingsError: it cannot be written there.
        BrokenPipeError: the reader of a pipe has gone.
    """
    try:
        _write(path, content) if follow_links else write_durably(path, content)
    except BrokenPipeError:
        raise
    except OSError as error:
        explained = explain_os_error(error, where=str(path))
        raise SettingsError(
            f"{path} cannot be written: {error.strerror or error}", where=f"{flag} {path}", hint=explained.hint
        ) from error


def is_stdout(path: Path) -> bool:
    """Whether a path names the standard output of this process, such as /dev/stdout."""
    return _own_descriptor(path) == 1


def wrong_file_types(folder: Path, files: Iterable[Path], folders: Iterable[Path]) -> list[str]:
    """What stands in the way of writing below a folder: links, and files and folders that are something else.

    Args:
        files: that must be regular files or missing.
        folders: that must be folders or missing.

    Returns:
        For each misfit its name and kind, such as "metrics.jsonl is a symbolic link".
    """
    wanted = [(path, stat.S_IFREG) for path in files] + [(path, stat.S_IFDIR) for path in folders]
    found = []
    for path, kind in wanted:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_IFMT(path.lstat().st_mode) != kind:
                found.append(f"{path.relative_to(folder)} is {_kind_of(path)}")
    return found


def remove_tree(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with all that is in it; of a link in its place, the link alone.

    Raises:
        OSError: something cannot be removed, unless errors are ignored.
    """
    if not path.is_symlink():
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    with contextlib.suppress(*[OSError] if ignore_errors else []):
        path.unlink()


def hash_prefix(path: Path, length: int) -> hashlib._Hash:
    """The SHA-256 of the first bytes of a file, which can be updated with the bytes after them.

    Raises:
        EOFError: the file is shorter.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0:
            block = file.read(min(length, 2**20))
            if not block:
                raise EOFError(f"{path} is shorter than expected, by {length} bytes")
            found.update(block)
            length -= len(block)
    return found


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        _write_all(os.dup(descriptor), content)
        return
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        kind = stat.S_IFREG
    if kind == stat.S_IFREG:
        write_durably(Path(os.path.realpath(path)), content)
    else:
        _write_all(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), content)


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _own_descriptor(path: Path) -> int | None:
    """The descriptor of this process that a path names, through links if need be; None of any other path."""
    for _ in range(40):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder) / path.readlink()
    return None


def _status_of_regular(path: Path) -> os.stat_result | None:
    """The lstat of a regular file; None where there is nothing.

    Raises:
        OSError: it is something else, and is not followed if it is a link.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise _not_regular(path, _kind_of(path))
    return status


def _not_regular(path: Path, kind: str) -> OSError:
    number = {"a symbolic link": errno.ELOOP, "a folder": errno.EISDIR}.get(kind, errno.EINVAL)
    return OSError(number, f"it is {kind}, not a regular file", str(path))


def _kind_of(path: Path) -> str:
    return _KINDS.get(stat.S_IFMT(path.lstat().st_mode), "no file")


def _copy_ownership(descriptor: int, before: os.stat_result) -> None:
    """Owner and mode of a file that is replaced, as far as the system lets this process set them."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, before.st_uid, before.st_gid)
    if hasattr(os, "fchmod"):
        os.fchmod(descriptor, before.st_mode & 0o777)
