"""The launchers whose jobs run in other processes, by the name in hydra/launcher=NAME."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from nanolm.compose.override_checks import REPLACED
from nanolm.errors import NanolmError, SettingsError
from nanolm.machine import n_cores
from nanolm.sweeps.launchers.local.settings import check_local, slots
from nanolm.sweeps.launchers.ray.settings import check_ray
from nanolm.sweeps.launchers.slurm.settings import Executor, check_slurm, slurm_settings

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.sweeps.job import SweepJob
    from nanolm.sweeps.launchers.engine import Engine

# Where Hydra finds a class for each of them, named such as LocalLauncher.
PLUGINS = "hydra_plugins.nanolm_launchers."


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher.

    Attributes:
        check: finds what is wrong with its settings, given the composed config of the sweep.
        make: returns its engine, given the composed config and the function that runs a job.
        threads: returns the number of threads of torch in each job, given the composed config and the number of jobs;
            None keeps torch's default.
        world_size: returns the number of processes that train a job together, given the composed config.
    """

    check: Callable[[DictConfig], Iterable[NanolmError]]
    make: Callable[[DictConfig, SweepJob], Engine]
    threads: Callable[[DictConfig, int], int | None]
    world_size: Callable[[DictConfig], int] = lambda config: 1


def launcher_name(config: DictConfig) -> str:
    """Return the launcher that a composed config chooses; basic runs jobs in the process of the driver.

    A user's own option on top of one of nanolm's has another name, and the same class.
    """
    target = str(config.hydra.launcher.get("_target_", ""))
    if target.startswith(PLUGINS):
        return target.removeprefix(PLUGINS).removesuffix("Launcher").lower()
    return str(config.hydra.runtime.choices["hydra/launcher"])


def is_in_process(config: DictConfig) -> bool:
    """Return whether jobs run one after another in the process of the driver."""
    return launcher_name(config) == "basic"


def check(config: DictConfig) -> list[NanolmError]:
    """Return the problems of the launcher's settings."""
    chosen = f"hydra/launcher={launcher_name(config)}"
    if chosen in REPLACED:
        # Chosen in a YAML file, with the package of a former version still installed.
        return [SettingsError(f"{chosen} was replaced", where=chosen, hint=REPLACED[chosen])]
    launcher = LAUNCHERS.get(launcher_name(config))
    return list(launcher.check(config)) if launcher else []


def world_size(config: DictConfig) -> int:
    """Return the number of processes that train a job together."""
    launcher = LAUNCHERS.get(launcher_name(config))
    return launcher.world_size(config) if launcher else 1


def threads_per_job(config: DictConfig, n_jobs: int) -> int | None:
    """Return the number of threads of torch in each job; None keeps torch's default."""
    launcher = LAUNCHERS.get(launcher_name(config))
    return launcher.threads(config, n_jobs) if launcher else None


def share_of_cores(config: DictConfig, n_slots: int, n_jobs: int) -> int | None:
    """Return the threads of each of several jobs that share this machine; OMP_NUM_THREADS takes precedence."""
    if "OMP_NUM_THREADS" in os.environ:
        return None
    at_once = min(n_slots, config.hydra.sweeper.get("max_running") or n_slots, max(n_jobs, 1))
    return max(1, n_cores() // at_once)


def _make_local(config: DictConfig, job: SweepJob) -> Engine:
    from nanolm.sweeps.launchers.local.jobs import local_jobs

    return local_jobs(config, job)


def _make_slurm(config: DictConfig, job: SweepJob) -> Engine:
    from nanolm.sweeps.launchers.slurm.jobs import slurm_jobs

    return slurm_jobs(config, job)


def _threads_in_slurm(config: DictConfig, n_jobs: int) -> int | None:
    settings = slurm_settings(config)
    if settings.executor is Executor.local and settings.cpus_per_task is None:
        return share_of_cores(config, settings.n_slots * settings.world_size, n_jobs * settings.world_size)
    return settings.cpus_per_task


def _make_ray(config: DictConfig, job: SweepJob) -> Engine:
    from nanolm.sweeps.launchers.ray.jobs import ray_jobs

    return ray_jobs(config, job)


LAUNCHERS = {
    "local": Launcher(
        check=check_local,
        make=_make_local,
        threads=lambda config, n_jobs: share_of_cores(config, len(slots(config)), n_jobs),
    ),
    "slurm": Launcher(
        check=check_slurm,
        make=_make_slurm,
        threads=_threads_in_slurm,
        world_size=lambda config: slurm_settings(config).world_size,
    ),
    "ray": Launcher(
        check=check_ray,
        make=_make_ray,
        threads=lambda config, n_jobs: max(1, int(config.hydra.launcher.num_cpus)),
    ),
}
