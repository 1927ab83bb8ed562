"""nanolm's sweepers as Hydra finds them; they are implemented in nanolm.sweeps.

Hydra executes this file before it is in sys.modules, where dataclasses would look up annotations that are strings.
"""

import dataclasses
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nanolm.sweeps.optuna.settings import OptunaConfig, require_optuna


@dataclasses.dataclass
class GridPluginConfig:
    """hydra/sweeper=grid.

    Attributes:
        params: settings to vary in addition to those on the command line: {key: "1,2,3"}.
        variants: lists of overrides by name, each combined with all other values.
        fail_fast: whether no job is started after one that failed; called sweep.fail_fast on the command line.
        max_hours: no job is started after this many hours; called sweep.max_hours on the command line.
        order: given, longest_first or by_seed; called sweep.order on the command line.
        max_running: jobs at a time; None for as many as the launcher runs.
    """

    _target_: str = "hydra_plugins.nanolm_sweepers.GridSweeper"
    params: dict[str, str] | None = None
    variants: dict[str, list[str]] | None = None
    fail_fast: bool = False
    max_hours: float | None = None
    order: str = "given"
    max_running: int | None = None


@dataclasses.dataclass
class OptunaPluginConfig(OptunaConfig):
    """hydra/sweeper=optuna."""

    _target_: str = "hydra_plugins.nanolm_sweepers.OptunaSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridPluginConfig, provider="nanolm")
ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaPluginConfig, provider="nanolm")


class PlanningSweeper(Sweeper):
    """Base of nanolm's sweepers, which create the launcher themselves once the jobs are planned."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def request(self, overrides: list[str]) -> Any:
        from nanolm.sweeps.driver import SweepRequest

        return SweepRequest(overrides, self.config, self.hydra_context, self.task_function)

    def planning(self) -> Any:
        """Return a context in which settings are checked for as many processes as the launcher starts for a job."""
        from nanolm.sweeps.launchers import registry
        from nanolm.torchrun import planned_world_size

        return planned_world_size(registry.world_size(self.config))


class GridSweeper(PlanningSweeper):
    """Run every combination of values; finished jobs are not run again."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs that are not done; return a `SweepResult`."""
        from nanolm.sweeps.grid import sweep

        with self.planning():
            return sweep(self.request(arguments), self.settings["params"], self.settings["variants"])


class OptunaSweeper(PlanningSweeper):
    """Run an Optuna study; trials run one after another, or as many at a time as the launcher runs."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the missing trials; return a `SweepResult`."""
        require_optuna()
        from nanolm.sweeps.optuna.search import sweep

        with self.planning():
            return sweep(self.request(arguments), OptunaConfig(**self.settings))
