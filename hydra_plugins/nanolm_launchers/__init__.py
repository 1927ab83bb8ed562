"""nanolm's launcher as Hydra finds it; it is implemented in nanolm.sweeps.launchers.

Hydra executes this file before it is in sys.modules, where dataclasses would look up annotations that are strings.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from nanolm.sweeps.launchers.local_settings import LocalConfig


@dataclasses.dataclass
class LocalPluginConfig(LocalConfig):
    """hydra/launcher=local."""

    _target_: str = "hydra_plugins.nanolm_launchers.LocalLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="local", node=LocalPluginConfig, provider="nanolm")


class LocalLauncher(Launcher):
    """Run jobs in worker processes on this machine, each with its GPU and its share of the cores.

    Hydra's context is not used: the jobs are planned, and nothing is composed in the workers.
    """

    def __init__(self, **settings: Any) -> None:
        self._jobs: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from nanolm.sweeps.launchers.local import require_planned

        require_planned(task_function)
        self._function, self._config = task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        """Run jobs; their results are those of the job function, or a `LostJob`."""
        from hydra.core.utils import JobReturn, JobStatus

        from nanolm.sweeps.launchers.local import LocalJobs

        if self._jobs is None:
            self._jobs = LocalJobs(self._config, self._function)
        values = self._jobs.run(job_overrides, initial_job_idx)
        return [JobReturn(_return_value=value, status=JobStatus.COMPLETED) for value in values]

    def close(self) -> None:
        """End the worker processes."""
        if self._jobs is not None:
            self._jobs.close()
