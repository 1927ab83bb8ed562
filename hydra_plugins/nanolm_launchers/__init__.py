"""nanolm's launchers as Hydra finds them; they are implemented in nanolm.sweeps.launchers.

Hydra executes this file before it is in sys.modules, where dataclasses would look up annotations that are strings.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nanolm.errors import SettingsError
from nanolm.sweeps.launchers.local.settings import LocalConfig
from nanolm.sweeps.launchers.ray.settings import RayConfig
from nanolm.sweeps.launchers.slurm.settings import SlurmConfig


@dataclasses.dataclass
class LocalPluginConfig(LocalConfig):
    """hydra/launcher=local."""

    _target_: str = "hydra_plugins.nanolm_launchers.LocalLauncher"


@dataclasses.dataclass
class RayPluginConfig(RayConfig):
    """hydra/launcher=ray."""

    _target_: str = "hydra_plugins.nanolm_launchers.RayLauncher"


@dataclasses.dataclass
class SlurmPluginConfig(SlurmConfig):
    """hydra/launcher=slurm."""

    _target_: str = "hydra_plugins.nanolm_launchers.SlurmLauncher"


for name, node in {"local": LocalPluginConfig, "ray": RayPluginConfig, "slurm": SlurmPluginConfig}.items():
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="nanolm")


class PlannedLauncher(Launcher):
    """Base of nanolm's launchers. nanolm's sweepers use their engines (nanolm.sweeps.launchers.registry) instead."""

    def __init__(self, **settings: Any) -> None:
        pass

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Refuse a sweeper of another package.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']} runs jobs that nanolm has planned, "
            "and another sweeper is chosen",
            where="hydra/sweeper",
            hint="leave hydra/sweeper out, or choose grid or optuna",
        )

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        raise AssertionError("setup raises an error")


class LocalLauncher(PlannedLauncher):
    """Run jobs in worker processes on this machine, each with its GPU and its share of the cores."""


class RayLauncher(PlannedLauncher):
    """Run each job as a task of a Ray cluster."""


class SlurmLauncher(PlannedLauncher):
    """Run jobs as a Slurm job array."""
