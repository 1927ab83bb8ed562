"""Read files of folders that others may have written, such as runs and checkpoints.

Only regular files are read, and only up to a size. Links are followed as long as they lead to a file of the same
folder: a downloaded run cannot name the reader's private files.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import Any

from nanolm.errors import RunError
from nanolm.files import NO_FOLLOW, kind_of, not_regular
from nanolm.plain_yaml import LOADER, PlainYamlError, load_plain_yaml

# A file of settings, a summary or a manifest has a few kilobytes.
MAX_BYTES = 1_000_000

StrPath = str | os.PathLike[str]

# Windows would convert line ends.
_FLAGS = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_BINARY", 0)


def folder_of(path: StrPath) -> str:
    """Return the folder that a file is in. A `Path` is slow to make for each of thousands of files."""
    return os.path.dirname(path) or os.curdir  # noqa: PTH120


def open_inside(path: StrPath, folder: StrPath) -> io.BufferedReader:
    """Open a regular file of a folder for reading.

    Args:
        path: the file, below `folder`.
        folder: the folder that links may not lead out of. It may be a link itself.

    Raises:
        OSError: the file is missing, cannot be opened, is not a regular file, or a link leads out of the folder.
    """
    return io.BufferedReader(open_unbuffered(path, folder))


def open_unbuffered(path: StrPath, folder: StrPath) -> io.FileIO:
    """Open a file as `open_inside` does, for reads of whole blocks."""
    return io.FileIO(_open_descriptor(path, folder)[0])


def _open_descriptor(path: StrPath, folder: StrPath) -> tuple[int, int]:
    """Open a file as `open_inside` does; return its descriptor and size."""
    try:
        # Without links, a file directly in the folder needs no further check.
        if folder_of(path) != os.fspath(folder):
            raise OSError(errno.ELOOP, "")
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        # FreeBSD reports a link as EMLINK.
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        real, root = os.path.realpath(path), os.path.realpath(folder)
        if not Path(real).is_relative_to(root):
            raise OSError(errno.ELOOP, f"it is a link to {real}, outside of {folder}", str(path)) from None
        descriptor = os.open(real, _FLAGS)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise not_regular(Path(path), kind_of(Path(path).resolve()))
    return descriptor, status.st_size


def read_inside(path: StrPath, folder: StrPath, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file of a folder.

    Raises:
        OSError: as `open_inside`, or the file is larger than `max_bytes`.
    """
    descriptor, size = _open_descriptor(path, folder)
    try:
        # Usually one call reads all of the file: unlike a stream, it takes no buffer of max_bytes.
        content = os.read(descriptor, min(size, max_bytes) + 1)
        while content and len(content) <= max_bytes and (more := os.read(descriptor, max_bytes + 1 - len(content))):
            content += more
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it has {max(size, len(content)):,} bytes, more than {max_bytes:,}", str(path))
    return content


def read_yaml(path: StrPath, folder: StrPath, loader: type[Any] = LOADER) -> dict[Any, Any]:
    """Read a YAML file of settings in a folder: plain values only, with limits (`load_plain_yaml`).

    Args:
        path: the file.
        folder: as for `open_inside`.
        loader: a safe loader class of PyYAML.

    Raises:
        RunError: the file cannot be read, is damaged, or contains no mapping.
    """
    try:
        content = load_plain_yaml(read_inside(path, folder), loader)
    except OSError as error:
        raise unreadable(path, error) from error
    except PlainYamlError as error:
        raise damaged(path, str(error), line=error.line) from error
    if not isinstance(content, dict):
        name = Path(path).name
        raise RunError(f"{name} holds no settings", where=str(path), hint="restore it from a copy of the run")
    return content


def damaged(
    path: StrPath, reason: str, hint: str = "restore it from a copy of the run", line: int | None = None
) -> RunError:
    """Return the error for a file of a run whose content is wrong.

    Args:
        path: the file.
        reason: what is wrong, as a clause, such as "it has no step".
        line: line number, counted from 1; None if the reason has no line.
    """
    found, where = f"{Path(path).name} is damaged: {reason}", str(path)
    if line is not None:
        found, where = f"{found} (line {line})", f"{where}:{line}"
    return RunError(found, where=where, hint=hint)


def unreadable(path: StrPath, error: OSError) -> RunError:
    """Return the error for a file of a run that cannot be read."""
    return RunError(
        f"{Path(path).name} cannot be read: {error.strerror or error}",
        where=str(path),
        hint="restore it from a copy of the run, or move it away",
    )
