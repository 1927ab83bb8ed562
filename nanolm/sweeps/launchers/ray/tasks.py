"""What runs on the nodes of a Ray cluster: functions of this module, which every node imports from its own nanolm."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanolm.compose import import_plugins
from nanolm.config.yaml_io import load_yaml, save_yaml
from nanolm.errors import NanolmError, SweepError, explain_os_error
from nanolm.files import write_durably
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.handover import PlannedJob
from nanolm.sweeps.job import SweepJob
from nanolm.sweeps.launchers.engine import Request
from nanolm.sweeps.launchers.local.jobs import LocalJob
from nanolm.sweeps.launchers.ray.archive import Seal, pack, unpack
from nanolm.sweeps.launchers.ray.texts import Text, place
from nanolm.sweeps.shared_disk import Token
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.stop_file import STOP, write_stop_file

if TYPE_CHECKING:
    from nanolm.config.run import Config

# Packages whose version decides the results of a job.
PACKAGES = ("nanolm", "torch")
STOP_FILE = ".stop"


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """What a node says about itself.

    Attributes:
        versions: of the packages that decide results; "none" for one that is missing.
        sees_token: whether it sees the sweep's directory.
    """

    versions: dict[str, str]
    sees_token: bool


@dataclasses.dataclass(frozen=True)
class NodeTask:
    """What all jobs of a sweep have in common.

    Attributes:
        directory: of the sweep, absolute.
        folder: the current folder of the driver, which relative paths start from.
        token: in the directory of the sweep.
        is_shared: whether jobs run in the directory of the sweep; otherwise each runs in a folder of its node.
        environment: variables that the driver and its jobs must agree on.
    """

    function: SweepJob
    directory: Path
    folder: Path
    token: Token
    is_shared: bool
    environment: dict[str, str]

    def run_of(self, request: Request) -> RunDirectory:
        """Return the run directory of a job in the directory of the sweep."""
        return RunDirectory(self.directory / PlannedJob.parse(request.overrides).folder)


@dataclasses.dataclass(frozen=True)
class Cargo:
    """What travels with a job to a node that does not see the sweep's directory.

    Attributes:
        run: references to the chunks and the seal of the run so far; empty for a new one.
        texts: by the name of the dataset's setting: the text, and references to its chunks, or None if it is too large.
    """

    run: tuple[Any, ...] = ()
    texts: dict[str, tuple[Text, tuple[Any, ...] | None]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Started:
    """The first item of a job that runs.

    Attributes:
        node: id of its node.
        folder: of the job on the disk of the node; None if it runs in the sweep's directory.
    """

    node: str
    folder: Path | None = None


def own_versions() -> dict[str, str]:
    """Return the versions of this process; those of torch without the build, such as +cu126."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            found[package] = "none"
    return found


def describe_node(token: Token | None) -> NodeFacts:
    """Describe the node that this task runs on."""
    return NodeFacts(own_versions(), token is None or token.is_visible())


def run_job(task: NodeTask, request: Request, cargo: Cargo) -> Iterator[Started | Report]:
    """Run a job; yield where it runs, and at the end its report."""
    import ray

    os.environ.update(task.environment)
    # Libraries in Rust, such as tokenizers; Ray itself limits OpenMP.
    os.environ.setdefault("RAYON_NUM_THREADS", str(task.function.threads or 1))
    with contextlib.suppress(OSError):
        os.chdir(task.folder)
    node = ray.get_runtime_context().get_node_id()
    if task.is_shared:
        yield Started(node)
        yield _run_shared(task, request)
    else:
        folder = Path(tempfile.mkdtemp(prefix="nanolm-ray-"))
        yield Started(node, folder)
        yield _run_apart(task, request, cargo, folder, ray.get)


def _run_shared(task: NodeTask, request: Request) -> Report:
    """Run a job in the sweep's directory."""
    if not task.token.is_visible():
        # Such as one that joined the cluster later.
        problem = SweepError(
            f"the node {socket.gethostname()} does not see the sweep's directory",
            where=str(task.directory),
            hint="repeat the command with hydra.launcher.shared_disk=false, which copies runs",
        )
        return Report(State.failed, error=str(problem))
    job = LocalJob(task.function, task.directory)
    job.prepare()
    return job(request)


def _run_apart(task: NodeTask, request: Request, cargo: Cargo, folder: Path, get: Callable[[Any], Any]) -> Report:
    """Run a job in a folder of this node.

    Args:
        folder: new and empty.
        get: returns the object of a reference.
    """
    planned = PlannedJob.parse(request.overrides)
    # wandb groups the runs of a sweep by the name of its directory.
    directory = folder / task.directory.name
    directory.mkdir()
    try:
        if cargo.run:
            unpack(map(get, cargo.run), directory / planned.folder)

        def load() -> Config:
            return _with_texts(planned.load(), cargo, folder, get)

        # The journal of a study is in the sweep's directory; pruners are refused there.
        function = dataclasses.replace(task.function, stop_file=folder / STOP_FILE, make_pruner=None)
        LocalJob(function, directory).prepare()
        return function.run(RunDirectory(directory / planned.folder), load, planned.choices)
    except NanolmError as error:
        return Report(State.failed, error=str(error))
    except OSError as error:
        return Report(State.failed, error=str(explain_os_error(error, where=f"{socket.gethostname()}, {folder}")))


def _with_texts(config: Config, cargo: Cargo, folder: Path, get: Callable[[Any], Any]) -> Config:
    """Return the settings with the paths of the texts on this machine."""
    paths: dict[str, Any] = {
        name: place(text, None if chunks is None else map(get, chunks), folder / "texts" / name)
        for name, (text, chunks) in cargo.texts.items()
    }
    return dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, **paths))


def stop_job(folder: Path) -> None:
    """Let a job that runs in a folder of this node save a checkpoint and end."""
    write_stop_file(folder / STOP_FILE, STOP)


def collect(task: NodeTask, request: Request, folder: Path, paths: dict[str, Any]) -> Iterator[bytes | Seal]:
    """Yield the archive of a run that ended in a folder of this node, and then remove the folder.

    Args:
        paths: the settings of the dataset that had other values on this machine, as they are in the sweep.
    """
    planned = PlannedJob.parse(request.overrides)
    run = RunDirectory(folder / task.directory.name / planned.folder)
    if paths and run.exists():
        with contextlib.suppress(OSError):
            os.chdir(task.folder)
        import_plugins(planned.plugins)
        config = load_yaml(run.config)
        config = dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, **paths))
        write_durably(run.config, save_yaml(config).encode())
    yield from pack(run)
    shutil.rmtree(folder, ignore_errors=True)


def differing_versions(own: dict[str, str], other: dict[str, str]) -> str:
    """Describe packages of which a node has another version than this process; empty if there are none."""
    return ", ".join(
        f"it has {name} {other.get(name, 'none')}, and this process has {name} {own[name]}"
        for name in own
        if other.get(name, "none") != own[name]
    )
