"""Run the jobs of a sweep in worker processes on this machine: hydra/launcher=local."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory, display_path
from nanolm.sweeps.handover import PlannedJob
from nanolm.sweeps.launchers.concurrency import threads_per_job
from nanolm.sweeps.launchers.local_settings import slots
from nanolm.sweeps.launchers.pool import Pool
from nanolm.terminal import visible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.sweeps.job import SweepJob
    from nanolm.sweeps.states import Report

# Variables that limit the threads of libraries: OpenMP, and those in Rust, such as tokenizers.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class LocalJob:
    """Runs planned jobs in a worker process, without Hydra, whose configs take as long to make as a short job.

    Attributes:
        directory: of the sweep.
    """

    function: SweepJob
    directory: Path

    def prepare(self) -> None:
        """Import what trains."""
        import nanolm.training.trainer  # noqa: F401

        # tqdm's own lock is a semaphore, of which Python warns when a process that is killed leaves it.
        tqdm.set_lock(threading.RLock())

    def __call__(self, number: int, request: Sequence[str]) -> Report:
        """Run the job of these overrides."""
        planned = PlannedJob.parse(request)
        return self.function.run(RunDirectory(self.directory / planned.folder), planned.load, planned.choices)


class LocalJobs:
    """The worker processes of a sweep, kept from one batch of jobs to the next.

    Args:
        config: the composed config of the sweep.
        function: runs a job.
    """

    def __init__(self, config: DictConfig, function: SweepJob) -> None:
        places = slots(config)
        threads = threads_per_job(config, len(places))
        limits = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
        environment = {name: value for name, value in limits.items() if name not in os.environ}
        task = LocalJob(function, display_path(Path(str(config.hydra.sweep.dir))))
        self._pool = Pool(places, task, environment, _show)

    def run(self, overrides: Sequence[Sequence[str]], first_number: int) -> list[Any]:
        """Run jobs and return their reports; a `LostJob` for one whose processes died."""
        return self._pool.run(overrides, first_number, [PlannedJob.parse(job).folder for job in overrides])

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()


def require_planned(function: Any) -> None:
    """Check that one of nanolm's sweepers drives the sweep.

    Raises:
        SettingsError: it is another one, which does not plan its jobs.
    """
    if getattr(function, "driver", None) is None:
        raise SettingsError(
            "hydra/launcher=local runs jobs that nanolm has planned, and another sweeper is chosen",
            where="hydra/sweeper",
            hint="leave hydra/sweeper out, or choose grid or optuna",
        )


def _show(text: str) -> None:
    """Print a message on stderr, above the status line of the sweep."""
    tqdm.write(visible(text, multiline=True), file=sys.stderr)
