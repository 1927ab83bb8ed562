"""Our sweepers, where Hydra looks for plugins. They are declared here, and work in nanolm.sweeps.

Hydra runs this file before it is in sys.modules, where dataclasses would look up annotations that are strings.
"""

import dataclasses
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nanolm.sweeps.optuna.settings import OptunaConfig, require_optuna


@dataclasses.dataclass
class GridSettings:
    """hydra/sweeper=grid.

    Attributes:
        params: what is swept besides the line, as Hydra's own sweeper has it: {key: "1,2,3"}.
        variants: lists of words by name; each name is combined with all the rest.
        fail_fast: whether no job starts after one that failed. On the line it is called sweep.fail_fast.
        max_batch_size: jobs that a parallel launcher is given at once; all of them unless set.
    """

    _target_: str = "hydra_plugins.nanolm_sweepers.GridSweeper"
    params: dict[str, str] | None = None
    variants: dict[str, list[str]] | None = None
    fail_fast: bool = False
    max_batch_size: int | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSettings, provider="nanolm")
ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=OptunaConfig, provider="nanolm")


class GridSweeper(Sweeper):
    """Every combination, each in the folder that its settings name; what is finished is not run again."""

    def __init__(
        self,
        params: dict[str, str] | None = None,
        variants: dict[str, list[str]] | None = None,
        fail_fast: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        self.params, self.variants = params or {}, variants or {}
        self.fail_fast, self.max_batch_size = fail_fast, max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra gives; the launcher is made when the jobs are known."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Runs what is missing of the sweep; exits with 1 when a job failed, and as a signal asks."""
        from nanolm.sweeps.grid import sweep

        return sweep(self, arguments)


class OptunaSweeper(Sweeper):
    """A study of Optuna's: trials one after another, or as many at a time as the launcher runs."""

    def __init__(self, **settings: Any) -> None:
        self.settings = OptunaConfig(**settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what Hydra gives; the launcher is made when the first trials are known."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def sweep(self, arguments: list[str]) -> Any:
        """Runs what is missing of the study; exits with 1 when a trial failed, and as a signal asks."""
        require_optuna()
        from nanolm.sweeps.optuna.search import sweep

        return sweep(self, arguments)
