"""The settings of hydra/launcher=ray and their checks."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nanolm.config.fields import Role, outside_bounds, setting
from nanolm.errors import NanolmError, SettingsError, install_hint
from nanolm.machine import n_cores
from nanolm.sweeps.launchers import gpus

if TYPE_CHECKING:
    from omegaconf import DictConfig

AUTO = "auto"
ADDRESS = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<host>[^\s:/\[\]]+)):(?P<port>\d{1,5})")


@dataclasses.dataclass
class RayConfig:
    """Settings of hydra/launcher=ray."""

    address: str | None = setting(
        None,
        doc="null: a local cluster, which the sweep starts and ends; auto: the cluster that this machine belongs to; "
        "or host:port of the head of such a cluster.",
        role=Role.runtime,
    )
    num_cpus: float = setting(1.0, doc="Cores of each job, which also are its threads; may be a fraction.", gt=0)
    num_gpus: float | None = setting(
        None,
        doc="GPUs of each job; 0.5 runs two jobs on each. null: one if a node has a GPU and trainer.device is not cpu.",
        ge=0,
    )
    max_retries: int = setting(
        0,
        doc="How often a job whose worker or node died is started again before it counts as one of the three attempts "
        "that a sweep makes; more for machines that are taken away.",
        role=Role.runtime,
        ge=0,
    )
    connect_timeout: float = setting(10.0, doc="Seconds in which the cluster must answer.", role=Role.runtime, gt=0)
    shared_disk: Any = setting(
        AUTO,
        doc="Whether all nodes see the sweep's directory. auto: look; true: refuse nodes that do not; false: each job "
        "runs on the disk of its node, and its run is copied back.",
        role=Role.runtime,
    )


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        name: of the machine.
        key: the id of the node in the cluster.
        n_cpus, n_gpus: what Ray gives to jobs.
        problem: why no job can run there; empty if one can.
        sees_token: whether it sees the sweep's directory; True if it was not asked.
    """

    name: str
    n_cpus: float
    n_gpus: float
    key: str = ""
    problem: str = ""
    sees_token: bool = True


def ray_settings(config: DictConfig) -> RayConfig:
    """Return the settings of the launcher in the composed config of a sweep."""
    given = config.hydra.launcher
    return RayConfig(**{field.name: given[field.name] for field in dataclasses.fields(RayConfig)})


def check_ray(config: DictConfig) -> Iterator[NanolmError]:
    """Find what is wrong with the settings of the launcher, a cluster that does not answer or fit included."""
    settings, device = ray_settings(config), str(config.trainer.device)
    problems = list(_check_values(settings, device))
    yield from problems
    if problems:
        return
    if settings.address is None:
        yield from unfit([this_machine()], settings, device)
        return
    from nanolm.sweeps.launchers.ray.connection import survey

    try:
        nodes = survey(settings)
    except NanolmError as error:
        yield error
        return
    yield from unfit(nodes, settings, device)


def gpus_per_job(settings: RayConfig, device: str, nodes: Sequence[Node]) -> float:
    """Return the GPUs of each job.

    Args:
        device: the setting trainer.device.
        nodes: of the cluster.
    """
    if settings.num_gpus is not None:
        return settings.num_gpus
    return float(device != "cpu" and any(node.n_gpus >= 1 for node in nodes))


def slots_of(node: Node, n_cpus: float, n_gpus: float) -> int:
    """Return how many jobs that each take so many cores and GPUs run on a node at a time."""
    # Ray counts resources in units of 1/10000.
    fits = [node.n_cpus / n_cpus, *([node.n_gpus / n_gpus] if n_gpus else [])]
    return math.floor(min(fits) + 1e-6)


def unfit(nodes: Sequence[Node], settings: RayConfig, device: str) -> Iterator[NanolmError]:
    """Find nodes on which no job can run, and settings that ask for more than any node has."""
    for node in nodes:
        if node.problem:
            yield SettingsError(
                f"{node.name} cannot run jobs: {node.problem}",
                where=f"hydra.launcher.address={settings.address}",
                hint="install the same versions of nanolm and its packages on all nodes",
            )
    n_gpus = gpus_per_job(settings, device, nodes)
    if device == "cuda" and not n_gpus:
        is_missing = settings.num_gpus is None
        yield SettingsError(
            "trainer.device=cuda, and " + ("no node has a GPU" if is_missing else "hydra.launcher.num_gpus=0"),
            where="hydra.launcher.num_gpus",
            hint="trainer.device=cpu" if is_missing else "hydra.launcher.num_gpus=1",
        )
    if not any(slots_of(node, settings.num_cpus, n_gpus) for node in nodes):
        has = "; ".join(f"{node.name}: {_amounts(node.n_cpus, node.n_gpus)}" for node in nodes)
        is_cpus = not any(slots_of(node, settings.num_cpus, 0) for node in nodes)
        name = f"hydra.launcher.{'num_cpus' if is_cpus else 'num_gpus'}"
        yield SettingsError(
            f"each job takes {_amounts(settings.num_cpus, n_gpus)}, more than any node has ({has})",
            where=name,
            hint=f"{name}=1, or less: two jobs share {'a core' if is_cpus else 'a GPU'} with {name}=0.5",
        )


def _amounts(n_cpus: float, n_gpus: float) -> str:
    """Describe resources: 1 core, 0.5 GPUs."""
    return f"{n_cpus:g} core{'s' * (n_cpus != 1)}, {n_gpus:g} GPU{'s' * (n_gpus != 1)}"


def this_machine() -> Node:
    """Return this machine as the only node of a local cluster."""
    return Node(socket.gethostname(), n_cores(), len(gpus.visible_gpus()))


def split_address(address: str) -> tuple[str, int]:
    """Return host and port.

    Raises:
        SettingsError: it is something else.
    """
    match = ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        is_client = address.startswith("ray://")
        raise SettingsError(
            f"hydra.launcher.address={address} " + ("is an address of Ray Client" if is_client else "is not host:port"),
            where="hydra.launcher.address",
            hint="start the sweep on a machine of the cluster, with hydra.launcher.address=auto or the host:port "
            "that `ray start` printed",
        )
    return match["ipv6"] or match["host"], int(match["port"])


def _check_values(settings: RayConfig, device: str) -> Iterator[NanolmError]:
    if importlib.util.find_spec("ray") is None:
        yield SettingsError("Ray is not installed", where="hydra/launcher=ray", hint=install_hint("ray"))
    yield from outside_bounds(settings, "hydra.launcher.")
    for name in ("num_cpus", "num_gpus"):
        value = getattr(settings, name)
        if value is not None and value > 1 and not float(value).is_integer():
            found = f"hydra.launcher.{name} is {value:g}: Ray gives fractions of one, and whole numbers"
            hint = f"hydra.launcher.{name}={math.ceil(value)}"
            yield SettingsError(found, where=f"hydra.launcher.{name}", hint=hint)
    if settings.shared_disk not in (AUTO, True, False):
        found = f"hydra.launcher.shared_disk is {settings.shared_disk}"
        yield SettingsError(found, where="hydra.launcher.shared_disk", hint="auto, true or false")
    if settings.address not in (None, AUTO):
        try:
            split_address(str(settings.address))
        except SettingsError as error:
            yield error
    if device == "cpu" and settings.num_gpus:
        found = f"hydra.launcher.num_gpus is {settings.num_gpus:g}, and trainer.device=cpu uses none"
        yield SettingsError(found, where="hydra.launcher.num_gpus", hint="leave one of the two out")
    if re.fullmatch(r"cuda:\d+", device):
        found = f"trainer.device={device} is one GPU for all jobs"
        hint = "trainer.device=cuda: Ray shows each job its own GPU only"
        yield SettingsError(found, where="trainer.device", hint=hint)
