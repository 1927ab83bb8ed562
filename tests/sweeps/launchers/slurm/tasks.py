"""Jobs for the engine of Slurm that train nothing."""

import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import read_stop_file


@dataclasses.dataclass(frozen=True)
class Function:
    """In place of a SweepJob: what it does is in the choices of the planned job.

    Attributes:
        folder: each start of a job leaves a file in it.
    """

    folder: Path
    stop_file: Path | None = None

    def run(self, run: RunDirectory, load: Callable[[], Any], choices: dict[str, str]) -> Report:
        name = run.path.name
        attempt = len(list(self.folder.glob(f"{name}-*")))
        (self.folder / f"{name}-{attempt}").write_text(str(os.getpid()))
        what = choices.get(str(attempt), "return")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            return Report(State.failed, error="a part is missing")
        if what == "raise":
            raise RuntimeError("a bug")
        while what == "wait":
            if read_stop_file(self.stop_file):
                return Report(State.interrupted, signal=signal.SIGTERM)
            time.sleep(0.01)
        return Report(State.completed)
