"""The connection of this process to a Ray cluster, and the nodes of the cluster."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanolm.errors import SettingsError
from nanolm.sweeps.launchers.ray import tasks as ray_tasks
from nanolm.sweeps.launchers.ray.settings import Node, RayConfig
from nanolm.sweeps.shared_disk import Token

# Seconds in which a node must start a worker and answer.
NODE_TIMEOUT = 60.0
# A local cluster moves reports only, unless runs are copied; Ray moves what does not fit to the disk.
LOCAL_OBJECT_STORE = 256 * 2**20
# Seconds from one look at the nodes to the next.
NODE_INTERVAL = 2.0
START_ATTEMPTS = 3
QUIET: Any = {"log_to_driver": False, "configure_logging": False}

LOST_NODE = "its node was lost"

# Takes no resources of its own.
_describe_node = ray.remote(num_cpus=0, max_retries=2)(ray_tasks.describe_node)


def connect(settings: RayConfig, n_cores: int, temporary: Path) -> None:
    """Connect this process to a cluster, or start one.

    Args:
        n_cores: of a local cluster.
        temporary: folder of a local cluster.

    Raises:
        SettingsError: Ray reports an error. Without an answer, this blocks, and may end the process.
    """
    is_local = settings.address is None
    for attempts_left in reversed(range(START_ATTEMPTS if is_local else 1)):
        try:
            if is_local:
                ray.init(
                    address="local",
                    num_cpus=n_cores,
                    object_store_memory=LOCAL_OBJECT_STORE,
                    include_dashboard=False,
                    _temp_dir=str(temporary),
                    **QUIET,
                )
            else:
                ray.init(address=settings.address, **QUIET)
            return
        except Exception as error:
            # Ray gives its processes 30 s to start, which a busy machine may need.
            if attempts_left:
                ray.shutdown()
                continue
            text = " ".join(str(error).split())
            raise SettingsError(
                f"Ray cannot start a local cluster: {text}" if is_local else f"Ray cannot connect: {text}",
                where=f"hydra.launcher.address={settings.address or 'null'}",
                hint="address=auto uses a cluster that `ray start --head` started"
                if is_local
                else "start the sweep on a machine of the cluster, where `ray status` answers",
            ) from error


def alive_nodes() -> list[Node]:
    """Return the nodes of the cluster."""
    return [
        Node(
            node["NodeManagerHostname"]
            if node["NodeManagerAddress"] == "127.0.0.1"
            else f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            node["NodeID"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def survey_nodes(token: Token | None) -> list[Node]:
    """Return the nodes, each with what a task on it says."""
    nodes = alive_nodes()
    answers = {node.key: on_node(_describe_node, node.key).remote(token) for node in nodes}
    ready, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_TIMEOUT)
    return [_surveyed(node, answers[node.key], answers[node.key] in ready) for node in nodes]


def _surveyed(node: Node, answer: Any, is_ready: bool) -> Node:
    if not is_ready:
        return dataclasses.replace(node, problem=f"no worker started within {NODE_TIMEOUT:.0f} s")
    try:
        facts = ray.get(answer)
    except RayError as error:
        return dataclasses.replace(node, problem=describe_error(error))
    problem = ray_tasks.differing_versions(ray_tasks.own_versions(), facts.versions)
    return dataclasses.replace(node, problem=problem, sees_token=facts.sees_token)


def on_node(task: Any, node: str) -> Any:
    """Return a task that runs on a node."""
    return task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def items_of(generator: Any, node: str) -> Iterator[Any]:
    """Yield what a task on a node yields.

    Raises:
        NodeDiedError: the cluster has lost the node.
        RayError: the task failed.
    """
    wait = functools.partial(ray.wait, [generator], timeout=NODE_INTERVAL, fetch_local=False)
    while True:
        while not wait()[0]:
            _require_alive(node)
        try:
            reference = next(generator)
        except StopIteration:
            return
        yield _fetch(reference, node)


def _fetch(reference: Any, node: str) -> Any:
    while True:
        try:
            return ray.get(reference, timeout=NODE_INTERVAL)
        except GetTimeoutError:
            _require_alive(node)
        except ObjectLostError as error:
            raise NodeDiedError(LOST_NODE) from error


def _require_alive(node: str) -> None:
    if all(each.key != node for each in alive_nodes()):
        raise NodeDiedError(LOST_NODE)


def describe_error(error: RayError) -> str:
    """Describe an error of Ray in a line."""
    if isinstance(error, NodeDiedError):
        return LOST_NODE
    if isinstance(error, OutOfMemoryError):
        return "Ray ended its worker, because its node was out of memory"
    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    return {"WorkerCrashedError": "its worker died"}.get(
        type(error).__name__, f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    )
