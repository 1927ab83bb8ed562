"""Run the jobs of a sweep in worker processes on this machine: hydra/launcher=local."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from nanolm.sweeps.handover import folder_of
from nanolm.sweeps.launchers.concurrency import threads_per_job
from nanolm.sweeps.launchers.local_settings import slots
from nanolm.sweeps.launchers.pool import Pool
from nanolm.terminal import visible

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

# Variables that limit the threads of libraries: OpenMP, and those in Rust, such as tokenizers.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class HydraJob:
    """Runs a job through Hydra, as its own launchers do. It is pickled into the worker processes.

    Attributes:
        config: the composed config of the sweep.
        function: runs a job; here a SweepJob.
    """

    context: HydraContext
    config: DictConfig
    function: TaskFunction

    def prepare(self) -> None:
        """Import what trains, and register the resolvers of Hydra."""
        from hydra.core.utils import setup_globals

        import nanolm.training.trainer  # noqa: F401

        setup_globals()
        # tqdm's own lock is a semaphore, of which Python warns when a process that is killed leaves it.
        tqdm.set_lock(threading.RLock())

    def __call__(self, number: int, request: Sequence[str]) -> Any:
        """Run the job of these overrides and return its result; an exception that it raised is raised."""
        from hydra.core.utils import run_job
        from omegaconf import open_dict

        config = self.context.config_loader.load_sweep_config(self.config, list(request))
        with open_dict(config):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
        returned = run_job(
            hydra_context=self.context,
            task_function=self.function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        return returned.return_value


class LocalJobs:
    """The worker processes of a sweep, kept from one batch of jobs to the next.

    Args:
        context: with the config loader, as Hydra gives it to launchers.
        config: the composed config of the sweep.
        function: runs a job.
    """

    def __init__(self, context: HydraContext, config: DictConfig, function: TaskFunction) -> None:
        places = slots(config)
        threads = threads_per_job(config, len(places))
        limits = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
        environment = {name: value for name, value in limits.items() if name not in os.environ}
        self._pool = Pool(places, HydraJob(context, config, function), environment, _show)

    def run(self, overrides: Sequence[Sequence[str]], first_number: int) -> list[Any]:
        """Run jobs and return what their function returned, or a `LostJob`."""
        return self._pool.run(overrides, first_number, [folder_of(job) for job in overrides])

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()


def _show(text: str) -> None:
    """Print a message on stderr, above the status line of the sweep."""
    tqdm.write(visible(text, multiline=True), file=sys.stderr)
