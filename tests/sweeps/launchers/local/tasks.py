"""Work for the processes of a pool."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

from nanolm.sweeps.launchers.engine import Request


def wait_for(folder: Path, n_files: int) -> None:
    """Wait until a folder has so many files."""
    while len(list(folder.iterdir())) < n_files:
        pass


@dataclasses.dataclass
class Task:
    """Writes a file for each process that runs a job.

    Attributes:
        n_together: each job waits for so many to have started.
        killed: numbers of jobs whose process is killed, with the number of times.
        failing: number of a job that raises an error.
        exit_status: of a process that ends before its first job.
    """

    folder: Path
    n_together: int = 0
    killed: dict[int, int] = dataclasses.field(default_factory=dict)
    failing: int | None = None
    exit_status: int | None = None

    def prepare(self) -> None:
        if self.exit_status is not None:
            os._exit(self.exit_status)

    def __call__(self, request: Request) -> dict[str, Any]:
        number = request.number
        attempt = len(list(self.folder.glob(f"{number}-*")))
        (self.folder / f"{number}-{attempt}").touch()
        if attempt < self.killed.get(number, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.failing:
            raise KeyError("a job")
        wait_for(self.folder, self.n_together)
        names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS")
        found = {name: os.environ.get(name) for name in names}
        return {
            "number": number,
            "overrides": request.overrides,
            "process": os.getpid(),
            "session": os.getsid(0),
            **found,
        }
