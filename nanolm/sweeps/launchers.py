"""The launcher of a sweep: its limits, the threads of each job, and how it receives the planned settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, open_dict, read_write

from nanolm.compose import import_plugins
from nanolm.compose.hydra_app import CheckedConfigLoader
from nanolm.config.composed import to_omegaconf
from nanolm.config.interpolation import escape
from nanolm.config.yaml_io import parse_yaml, save_yaml
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json, parse_json

if TYPE_CHECKING:
    from nanolm.sweeps.planning import Job

# The override that carries a planned job. Hydra's launchers leave overrides that begin with "hydra." out of their logs.
PLANNED = "hydra.planned="


def job_overrides(job: Job) -> list[str]:
    """Return what a launcher passes to `PlannedJobLoader` for a job, from whichever process it runs the job in."""
    planned = {
        "folder": job.run.path.name,
        "plugins": job.config.plugins,
        "choices": job.choices,
        "settings": save_yaml(job.config),
    }
    return [PLANNED + dump_json(planned)]


class PlannedJobLoader(CheckedConfigLoader):
    """Config loader that hands a launcher the settings of a job as they were planned, without composing them again."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return the configuration of a job: its planned settings and the Hydra settings of the sweep.

        Args:
            master_config: the configuration of the sweep.
            sweep_overrides: the result of `job_overrides`.
        """
        (override,) = sweep_overrides
        planned = parse_json(override.removeprefix(PLANNED))
        import_plugins(planned["plugins"])
        settings = to_omegaconf(parse_yaml(planned["settings"], Path(planned["folder"])))
        composed = master_config.copy()
        with read_write(composed), open_dict(composed):
            for name in settings:
                composed[name] = settings._get_node(name)
            composed.hydra.sweep.subdir = escape(planned["folder"])
            composed.hydra.runtime.choices = {**composed.hydra.runtime.choices, **planned["choices"]}
        return composed


def is_in_process(config: DictConfig) -> bool:
    """Whether jobs run in the process that leads the sweep, one after another."""
    return _chosen(config) == "basic"


def jobs_at_once(config: DictConfig, n_cores: int | None = None) -> int | None:
    """How many jobs run on this machine at a time; None where a scheduler decides.

    Args:
        n_cores: of this machine; counted unless given.

    Raises:
        SettingsError: the launcher is to run none.
    """
    n_cores = n_cores or own_cores()
    launcher, name = config.hydra.launcher, _chosen(config)
    if name == "joblib":
        if launcher.n_jobs == 0:
            raise SettingsError("no job is to run at a time", where="hydra.launcher.n_jobs", hint="1 or more, or -1")
        # joblib counts back from all cores: -1 is all of them, -2 all but one.
        return launcher.n_jobs if launcher.n_jobs > 0 else max(1, n_cores + 1 + launcher.n_jobs)
    if name == "submitit_local":
        return max(1, n_cores // (launcher.cpus_per_task or 1))
    return 1 if name == "basic" else None


def batch_size(config: DictConfig) -> int | None:
    """How many jobs the launcher is given at once; None: all of them."""
    if is_in_process(config):
        return 1
    given = config.hydra.sweeper.get("max_batch_size")
    # submitit's local executor starts whatever it is given.
    return given or (jobs_at_once(config) if _chosen(config) == "submitit_local" else None)


def threads(config: DictConfig, n_jobs: int, n_cores: int | None = None) -> int | None:
    """The threads of torch in each job, so that jobs at a time share the cores; None leaves them as they are.

    OMP_NUM_THREADS goes before it, as everywhere.

    Args:
        n_jobs: how many there are to run.
        n_cores: of this machine; counted unless given.
    """
    name = _chosen(config)
    if name == "submitit_slurm":
        return config.hydra.launcher.cpus_per_task
    at_once = jobs_at_once(config, n_cores)
    if name == "basic" or at_once is None or "OMP_NUM_THREADS" in os.environ:
        return None
    at_once = min(at_once, config.hydra.sweeper.get("max_batch_size") or at_once, max(n_jobs, 1))
    return max(1, (n_cores or own_cores()) // at_once)


def own_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen(config: DictConfig) -> str:
    return str(config.hydra.runtime.choices["hydra/launcher"])
