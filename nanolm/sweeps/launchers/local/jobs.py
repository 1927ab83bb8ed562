"""Run the jobs of a sweep in worker processes on this machine: hydra/launcher=local."""

from __future__ import annotations

import dataclasses
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from nanolm.runs.directory import RunDirectory, display_path
from nanolm.sweeps.handover import PlannedJob
from nanolm.sweeps.launchers.engine import Request
from nanolm.sweeps.launchers.local.pool import Pool
from nanolm.sweeps.launchers.local.settings import slots
from nanolm.sweeps.launchers.messages import show

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

    def __call__(self, request: Request) -> Report:
        """Run a job."""
        planned = PlannedJob.parse(request.overrides)
        return self.function.run(RunDirectory(self.directory / planned.folder), planned.load, planned.choices)


def local_jobs(config: DictConfig, function: SweepJob) -> Pool:
    """Return the worker processes of a sweep.

    Args:
        config: the composed config of the sweep.
        function: runs a job.
    """
    threads = function.threads
    limits = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    environment = {name: value for name, value in limits.items() if name not in os.environ}
    task = LocalJob(function, display_path(Path(str(config.hydra.sweep.dir))))
    return Pool(slots(config), task, environment, show)
