"""The stop file of a sweep: how the driver's process reaches the processes of its jobs, on whatever machine."""

from __future__ import annotations

import contextlib
from pathlib import Path

from nanolm.files import write_text
from nanolm.untrusted import read_inside

# Contents of the file: jobs that run may finish, or must stop as well.
START_NO_JOB = "start no job"
STOP = "stop"


def write_stop_file(path: Path, command: str) -> None:
    """Write START_NO_JOB or STOP, unless the folder no longer exists."""
    with contextlib.suppress(OSError):
        write_text(path, command)


def read_stop_file(path: Path | None) -> str:
    """Return the command, or an empty string."""
    try:
        return read_inside(path, path.parent).decode(errors="replace") if path else ""
    except OSError:
        return ""
