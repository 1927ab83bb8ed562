"""Run the jobs of a sweep on a Ray cluster: hydra/launcher=ray."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.errors import SettingsError, raise_all
from nanolm.runs.directory import display_path
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.gpus import VISIBLE
from nanolm.sweeps.launchers.messages import show
from nanolm.sweeps.launchers.ray import process as ray_process
from nanolm.sweeps.launchers.ray.connection import RayConnection
from nanolm.sweeps.launchers.ray.process import Begin, News
from nanolm.sweeps.launchers.ray.settings import AUTO, Node, RayConfig, gpus_per_job, ray_settings, slots_of, unfit
from nanolm.sweeps.launchers.ray.tasks import NodeTask
from nanolm.sweeps.shared_disk import token_in
from nanolm.sweeps.states import State

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.sweeps.job import SweepJob

# Variables that the driver and its jobs must agree on if they write to the same disk.
SHARED_VARIABLES = ("NANOLM_LOCK",)


class RayJobs:
    """The engine of a sweep on a Ray cluster, in a process of its own. `close` must be called.

    Args:
        device: the setting trainer.device.
        function: runs a job.
        directory: of the sweep.

    Raises:
        NanolmError: the cluster does not answer, or cannot run the jobs.
    """

    def __init__(self, settings: RayConfig, device: str, function: SweepJob, directory: Path) -> None:
        with contextlib.ExitStack() as opened:
            token = opened.enter_context(token_in(directory))
            self._connection = opened.enter_context(RayConnection(settings, token))
            nodes = self._connection.nodes()
            raise_all(list(unfit(nodes, settings, device)))
            is_shared = _is_shared(settings, nodes, function, directory)
            n_gpus = gpus_per_job(settings, device, nodes)
            environment = job_environment(is_shared, n_gpus)
            task = NodeTask(function, directory.absolute(), Path.cwd(), token, is_shared, environment)
            self._connection.send(Begin(task, settings.num_cpus, n_gpus))
            self._n_slots = sum(slots_of(node, settings.num_cpus, n_gpus) for node in nodes)
            self._opened = opened.pop_all()

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most."""
        return max(1, self._n_slots)

    def start(self, requests: Sequence[Request]) -> None:
        """Queue jobs."""
        self._connection.send(list(requests))

    def ended(self, timeout: float) -> list[Ended]:
        """Wait until at least one job has ended, at most for a number of seconds; return all that have ended since.

        Raises:
            SweepError: the connection to the cluster was lost.
        """
        found: list[Ended] = []
        until = time.monotonic() + timeout
        while news := self._connection.receive(0.0 if found else max(0.0, until - time.monotonic())):
            assert isinstance(news, News)
            found += news.ended
            self._n_slots = news.n_slots
        return found

    def cancel_waiting(self) -> None:
        """Start none of the jobs that wait."""
        self._connection.send(ray_process.CANCEL_WAITING)

    def stop_running(self) -> None:
        """Let the jobs that run save a checkpoint and end."""
        self._connection.send(ray_process.STOP_RUNNING)

    def close(self) -> None:
        """Stop the jobs that still run, which save a checkpoint first, and end a local cluster."""
        self._opened.close()


def ray_jobs(config: DictConfig, function: SweepJob) -> RayJobs:
    """Return the engine of a sweep.

    Args:
        config: the composed config of the sweep.
        function: runs a job.
    """
    directory = display_path(Path(str(config.hydra.sweep.dir)))
    return RayJobs(ray_settings(config), str(config.trainer.device), function, directory)


def job_environment(is_shared: bool, n_gpus: float) -> dict[str, str]:
    """Return environment variables of the jobs, in addition to those of their nodes."""
    variables = {name: os.environ.get(name, "") for name in SHARED_VARIABLES if is_shared}
    # Whether Ray itself hides GPUs that it did not give depends on its version and settings.
    return variables if n_gpus else {**variables, VISIBLE: ""}


def _is_shared(settings: RayConfig, nodes: Sequence[Node], function: SweepJob, directory: Path) -> bool:
    """Return whether jobs run in the sweep's directory.

    Raises:
        SettingsError: some nodes do not see it, and the settings or a pruner need that.
    """
    without = [node.name for node in nodes if not node.sees_token]
    if settings.shared_disk is True and without:
        raise SettingsError(
            f"the sweep's directory is not on a shared disk: {', '.join(without)} cannot see it",
            where=str(directory.absolute()),
            hint="choose a folder that all nodes see with hydra.sweep.dir=, or leave shared_disk out: runs are copied",
        )
    if settings.shared_disk is True or (settings.shared_disk == AUTO and not without):
        return True
    # Trials end as pruned only if the study has a pruner.
    if function.make_pruner is not None and State.pruned in function.final_states:
        raise SettingsError(
            "a pruner compares the trials that run, and they do not see the study",
            where=str(directory.absolute()),
            hint="choose a folder that all nodes see with hydra.sweep.dir=, or hydra.sweeper.pruner=none",
        )
    if without:
        show(f"nanolm: {', '.join(without)} cannot see {directory}: each run is copied here when its job ends")
    return False
