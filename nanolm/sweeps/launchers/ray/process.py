"""The process of a sweep that is connected to a Ray cluster.

Ray writes to the terminal, replaces signal handlers, and ends the process if its cluster is lost, so it has one of its
own: without a terminal, with its output in a file. It ends when the driver closes the connection, or dies.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from nanolm.errors import NanolmError
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.launchers.ray.settings import Node, RayConfig
from nanolm.sweeps.launchers.ray.tasks import NodeTask
from nanolm.sweeps.shared_disk import Token

OUTPUT = "output.log"
# Set before Ray is imported, and inherited by the processes of a local cluster.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What the process is started with.

    Attributes:
        n_cores: of a local cluster.
        token: in the sweep's directory; None: nodes are not asked for it.
        scratch: an existing folder for the output and the files of a local cluster.
    """

    settings: RayConfig
    n_cores: int
    token: Token | None
    scratch: Path


class Imported:
    """Sent when this process has imported Ray."""


class Answered:
    """Sent when the cluster has answered."""


@dataclasses.dataclass(frozen=True)
class Surveyed:
    """Sent when the nodes have answered."""

    nodes: list[Node]


@dataclasses.dataclass(frozen=True)
class Refused:
    """Sent instead of these."""

    error: NanolmError


@dataclasses.dataclass(frozen=True)
class Begin:
    """The driver's first message: what its jobs have in common, and the resources of each."""

    task: NodeTask
    n_cpus: float
    n_gpus: float


@dataclasses.dataclass(frozen=True)
class News:
    """Sent when jobs have ended, with how many run at a time now."""

    ended: list[Ended]
    n_slots: int


# The driver's other messages: jobs to start, or one of these.
CANCEL_WAITING = "cancel waiting"
STOP_RUNNING = "stop running"


def main(connection: Connection, setup: Setup) -> None:
    """Connect, and run jobs until the connection is closed."""
    _leave_terminal(setup.scratch / OUTPUT)
    os.environ.update(ENVIRONMENT)
    import ray

    from nanolm.sweeps.launchers.ray.cluster import Cluster
    from nanolm.sweeps.launchers.ray.nodes import connect, survey_nodes

    # The driver may be dead; then there is nobody to report to.
    with contextlib.suppress(EOFError, ConnectionError):
        try:
            connection.send(Imported())
            connect(setup.settings, setup.n_cores, setup.scratch)
            signal.signal(signal.SIGTERM, _exit)
            connection.send(Answered())
            connection.send(Surveyed(survey_nodes(setup.token)))
            begin = connection.recv()
            cluster = Cluster(begin.task, begin.n_cpus, begin.n_gpus, setup.settings.max_retries)
            try:
                _serve(connection, cluster)
            finally:
                cluster.close()
        except NanolmError as error:
            connection.send(Refused(error))
        finally:
            ray.shutdown()
    # A driver that lives reads the output first, if something went wrong.
    shutil.rmtree(setup.scratch, ignore_errors=True)


def _serve(connection: Connection, cluster: Any) -> None:
    """Start jobs and report their ends, until the connection is closed.

    Raises:
        EOFError: it is.
    """
    while True:
        while connection.poll(0 if cluster.is_busy else None):
            message: str | Sequence[Request] = connection.recv()
            if message == CANCEL_WAITING:
                cluster.cancel_waiting()
            elif message == STOP_RUNNING:
                cluster.stop_running()
            else:
                cluster.start(message)
        if ended := cluster.step():
            connection.send(News(ended, cluster.n_slots()))


def _leave_terminal(output: Path) -> None:
    """Become the leader of a session, which Ctrl-C does not reach, and write to a file."""
    if hasattr(os, "setsid"):
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    os.close(nothing)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
