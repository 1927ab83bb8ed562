"""Writes that survive a crash."""

from __future__ import annotations

import os
from pathlib import Path

from nanolm.errors import SettingsError


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file so that after a crash it holds either its old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_asked_for(flag: str, path: Path, content: bytes) -> None:
    """Writes the file that a flag of the command line names.

    Raises:
        SettingsError: it cannot be written there.
    """
    try:
        write_durably(path, content)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}", where=f"{flag} {path}", mend="name a file in a folder"
        ) from error


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
