"""The stop file of a sweep: how the driver's process reaches the processes of its jobs, on whatever machine."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from nanolm.files import write_text

# Contents of the file: jobs that run may finish, or must stop as well.
START_NO_JOB = "start no job"
STOP = "stop"


@dataclasses.dataclass(frozen=True)
class StopFile:
    """A file that tells the jobs of a sweep to stop."""

    path: str

    def write(self, command: str) -> None:
        """Write START_NO_JOB or STOP, unless the folder no longer exists."""
        with contextlib.suppress(OSError):
            write_text(Path(self.path), command)

    def read(self) -> str:
        """Return the command, or an empty string."""
        try:
            return Path(self.path).read_text(encoding="utf-8")
        except OSError:
            return ""

    def remove(self) -> None:
        """Remove the file, if it exists."""
        with contextlib.suppress(OSError):
            Path(self.path).unlink(missing_ok=True)
