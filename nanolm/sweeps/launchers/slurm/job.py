"""A job of a sweep that was submitted: its files, its result, and a description of its end."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nanolm.runs.directory import display_path
from nanolm.sweeps.handover import LostJob
from nanolm.sweeps.launchers.slurm.records import Command
from nanolm.sweeps.states import Report, State
from nanolm.terminal import visible

# Characters of the last line of a log in a message.
LINE_LENGTH = 200


@dataclasses.dataclass
class SubmittedJob:
    """A job that was submitted.

    Attributes:
        id: Slurm's; of a process on this machine its number.
        world_size: the number of its processes.
        handle: submitit's; None if another command has submitted the job.
        command: that other command.
        has_left: whether the last squeue showed it as ended, or no longer.
    """

    id: str
    world_size: int = 1
    handle: Any = None
    command: Command | None = None
    has_left: bool = False

    @property
    def array(self) -> str:
        """The id of its array."""
        return self.id.split("_")[0]

    @property
    def _result(self) -> Path:
        # Of several processes, the first one reports.
        return self.handle.task(0).paths.result_pickle

    @property
    def _stderr(self) -> Path:
        return self.handle.task(0).paths.stderr

    def has_result(self, names: Collection[str]) -> bool:
        """Return whether submitit has written its result; it does so once.

        Args:
            names: of the files in the folder of the command.
        """
        return self.handle is not None and self._result.name in names

    def read_result(self) -> Report | LostJob:
        """Return what the function returned, or a description of the error that it raised."""
        # This process has created the folder: the file is that of its own job.
        outcome, value = pickle.loads(self._result.read_bytes())  # noqa: S301
        if outcome == "success" and isinstance(value, Report):
            return value
        lines = str(value).strip().splitlines() or ["no reason given"]
        return LostJob(self.describe(visible(lines[-1][:LINE_LENGTH])))

    def describe(self, end: str) -> str:
        """Describe its end without a result, in one line, with the last line of its log."""
        try:
            lines = [line for line in self._stderr.read_text(errors="replace").splitlines() if line.strip()]
        except OSError:
            folder = display_path(self._stderr.parent)
            return f"job {self.id}: {end}; it wrote no log, so its machine may not see {folder}"
        last = f": {visible(lines[-1].strip()[:LINE_LENGTH])}" if lines and lines[-1].strip() != end else ""
        return f"job {self.id}: {end}{last} ({display_path(self._stderr)})"

    def clean(self, result: Report | LostJob) -> None:
        """Remove its files when it has ended; the logs stay if it was lost or has failed."""
        if self.handle is None:
            return
        is_failed = isinstance(result, LostJob) or result.state is State.failed
        self.handle.paths.submitted_pickle.unlink(missing_ok=True)
        for rank in range(self.world_size):
            paths = self.handle.task(rank).paths
            for path in (paths.result_pickle, *(() if is_failed else (paths.stdout, paths.stderr))):
                path.unlink(missing_ok=True)
