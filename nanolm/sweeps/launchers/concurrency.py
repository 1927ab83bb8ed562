"""Facts about the launcher of a sweep: how many jobs it runs at a time, and the threads of each."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nanolm.errors import NanolmError
from nanolm.machine import n_cores
from nanolm.sweeps.launchers.local_settings import check_local, slots

if TYPE_CHECKING:
    from omegaconf import DictConfig


LOCAL = "local"


def check(config: DictConfig) -> list[NanolmError]:
    """Return the problems of the launcher's settings."""
    return list(check_local(config)) if _launcher_name(config) == LOCAL else []


def is_in_process(config: DictConfig) -> bool:
    """Return whether jobs run one after another in the process of the driver."""
    return _launcher_name(config) == "basic"


def concurrent_jobs(config: DictConfig) -> int | None:
    """Return how many jobs run on this machine at a time; None if a scheduler decides.

    Raises:
        SettingsError: as in `check`.
    """
    name = _launcher_name(config)
    if name == LOCAL:
        return len(slots(config))
    if name == "submitit_local":
        return max(1, n_cores() // (config.hydra.launcher.cpus_per_task or 1))
    return 1 if name == "basic" else None


def batch_size(config: DictConfig) -> int | None:
    """Return how many jobs to pass to the launcher at a time; None for all of them."""
    if is_in_process(config):
        return 1
    given = config.hydra.sweeper.get("max_batch_size")
    # submitit's local executor starts all jobs that it is given at once.
    return given or (concurrent_jobs(config) if _launcher_name(config) == "submitit_local" else None)


def threads_per_job(config: DictConfig, n_jobs: int) -> int | None:
    """Return the number of threads of torch in each job, so that concurrent jobs share the cores.

    None keeps torch's default, as when OMP_NUM_THREADS is set.
    """
    name = _launcher_name(config)
    if name == "submitit_slurm":
        return config.hydra.launcher.cpus_per_task
    at_once = concurrent_jobs(config)
    if name == "basic" or at_once is None or "OMP_NUM_THREADS" in os.environ:
        return None
    at_once = min(at_once, config.hydra.sweeper.get("max_batch_size") or at_once, max(n_jobs, 1))
    return max(1, n_cores() // at_once)


def _launcher_name(config: DictConfig) -> str:
    return str(config.hydra.runtime.choices["hydra/launcher"])
