"""Write the files that command-line options name, such as `-o` and `--png`."""

from __future__ import annotations

import os
from pathlib import Path

from nanolm.errors import DiskError, SettingsError, explain_os_error
from nanolm.files import write_durably


def write_output_file(option: str, path: Path, content: bytes, *, follow_links: bool = True) -> None:
    """Write the file that a command-line option names.

    A regular file is replaced atomically. A device, a FIFO or a descriptor of this process (/dev/stdout) is written in
    place.

    Args:
        option: the option, for the error; `path` is its value.
        follow_links: whether a link is followed, as for a file that the user named. False refuses it, as for a file in
            a folder that the user named.

    Raises:
        SettingsError: the file cannot be written.
        DiskError: the same, because the disk is full or fails.
        BrokenPipeError: the reader of a pipe has exited.
    """
    try:
        _write(path, content) if follow_links else write_durably(path, content)
    except BrokenPipeError:
        raise
    except OSError as error:
        explained = explain_os_error(error, where=str(path))
        kind = DiskError if isinstance(explained, DiskError) else SettingsError
        raise kind(
            f"{path} cannot be written: {error.strerror or error}", where=f"{option} {path}", hint=explained.hint
        ) from error


def is_stdout(path: Path) -> bool:
    """Return whether a path is the standard output of this process, such as /dev/stdout."""
    return _own_descriptor(path) == 1


def _write(path: Path, content: bytes) -> None:
    descriptor = _own_descriptor(path)
    if descriptor is not None:
        _write_all(os.dup(descriptor), content)
        return
    if path.is_file() or not path.exists():
        write_durably(Path(os.path.realpath(path)), content)
    else:
        _write_all(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), content)


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _own_descriptor(path: Path) -> int | None:
    """Return the descriptor of this process that a path leads to, through links too; None for other paths."""
    for _ in range(40):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder) / path.readlink()
    return None
