"""Disks that are full, fail or become read-only, and kills, at every system call that writes.

Each point is a real command in a process of its own. After the fault is gone, the same command continues, and its
result is that of an undisturbed one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanolm.runs.directory import RunDirectory
from nanolm.runs.samples import Sample, read_samples
from tests.faults.injection import CALLS, CLOSE, Faults, build
from tests.faults.server import FaultServer
from tests.helpers import final_state, is_same_state, temporary_files, untimed_rows

DATA = ("dataset=text", "dataset.path=small.txt")
SMALL = (
    *DATA,
    "model=bigram",
    "size.context_length=16",
    "trainer.batch_size=4",
    "trainer.device=cpu",
    "trainer.max_steps=4",
    "trainer.log_every=1",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.sample_tokens=4",
    "trainer.ema_decay=0.9",
    "logger=none",
)
PREPARE = ("data", "prepare", *DATA)
TRAIN = ("train", *SMALL, "hydra.run.dir=run", "resume=auto")
RESUME = ("train", "resume=run", "trainer.max_steps=6")
FORK = ("train", "resume=run", "fork=true", "trainer.max_steps=6", "hydra.run.dir=fork")
SWEEP = ("train", "-m", *SMALL, "seed=1,2", "hydra.sweep.dir=sweep")
STUDY = (
    *("train", "-m", *SMALL, "optimizer.lr=interval(0.001,0.1)"),
    *("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=study"),
)
REPORT = ("report", "run", "--maps", "0")

# Faults by name: the settings of `Faults.environment`.
FOREVER = 10**9
NEEDS_SPACE = ("open", "write", "fsync", "truncate", "mkdir", CLOSE)
DISKS: dict[str, dict[str, Any]] = {
    "full": {"errno": errno.ENOSPC, "last": FOREVER, "calls": NEEDS_SPACE},
    "full for a moment": {"errno": errno.ENOSPC, "calls": NEEDS_SPACE, "is_short": True},
    "failing": {"errno": errno.EIO, "last": FOREVER},
    "failing once": {"errno": errno.EIO, "calls": (*CALLS, CLOSE)},
    "read-only": {"errno": errno.EROFS, "last": FOREVER},
}


class Scene:
    """A folder with a text, in which commands run with faults.

    Args:
        server: runs the commands in its folder.
        pristine: a folder for the state before each command.
    """

    def __init__(self, server: FaultServer, pristine: Path) -> None:
        self.server, self._pristine = server, pristine
        shutil.rmtree(pristine, ignore_errors=True)
        pristine.mkdir()
        lines = (f"{n} and {n + 1} make {2 * n + 1}, so that {n % 7} is left over.\n" for n in range(60))
        (pristine / "small.txt").write_text("".join(lines))
        self.reset()

    def reset(self) -> None:
        """Restore the state before the command."""
        shutil.rmtree(self.server.folder, ignore_errors=True)
        shutil.copytree(self._pristine, self.server.folder)

    def begin_with(self, *command: str) -> None:
        """Run a command, and keep its result as the state before the others."""
        assert self.server.run(*command).returncode == 0
        shutil.rmtree(self._pristine)
        shutil.copytree(self.server.folder, self._pristine)

    def result(self) -> dict[str, tuple[Any, ...]]:
        """Return the rows, samples, status and final state of each run, by its name."""
        runs = [RunDirectory(path.parent) for path in sorted(self.server.folder.glob("**/config.yaml"))]
        return {run.path.name: (untimed_rows(run), samples_of(run), status_of(run), final_state(run)) for run in runs}

    def count(self, *command: str, **settings: Any) -> int:
        """Return the number of calls that count in an undisturbed command."""
        self.reset()
        done = self.server.run(*command, at=FOREVER, **settings)
        assert done.returncode == 0, done.stderr
        return self.server.faults.n_calls

    def require_continued(self, command: tuple[str, ...], expected: dict[str, tuple[Any, ...]]) -> None:
        """Repeat the command without faults, and require the result of an undisturbed one.

        A fork that has begun is resumed instead, as the error of the repeated command says.
        """
        if "fork=true" in command and (self.server.folder / "fork" / "config.yaml").exists():
            command = ("train", "resume=fork")
        done = self.server.run(*command)
        assert done.returncode == 0, done.stderr
        found = self.result()
        assert found.keys() == expected.keys()
        for name, (rows, samples, status, state) in found.items():
            assert rows == expected[name][0], name
            assert samples == expected[name][1], name
            assert status == expected[name][2], name
            assert is_same_state(state, expected[name][3]), name
        assert temporary_files(self.server.folder) == []


def samples_of(run: RunDirectory) -> list[Sample]:
    return read_samples(run.samples)


def status_of(run: RunDirectory) -> str | None:
    return run.read_summary().status


def require_one_message(done: subprocess.CompletedProcess[str], is_sweep: bool) -> None:
    """Require success, or one error with a path and a hint; a sweep also has one for each job that failed."""
    assert done.returncode in (0, 1, 2), done.stderr
    for noise in ("Traceback", "Exception ignored", "Warning"):
        assert noise not in done.stdout + done.stderr
    errors = [text for text in done.stderr.split("nanolm: ")[1:] if "training continues" not in text.splitlines()[0]]
    if done.returncode == 0:
        assert errors == []
        return
    assert len(errors) == 1 or (is_sweep and errors), done.stderr
    for text in errors:
        assert re.search("^  where: .", text, re.MULTILINE), text
        assert re.search("^  hint:  .", text, re.MULTILINE), text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "here").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment |= {"NANOLM_CACHE": str(folder / "here" / "cache"), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    with FaultServer(
        Faults(build(folder), folder / "here", folder / "counter"), folder / "here", environment
    ) as started:
        yield started


@pytest.fixture
def scene(server: FaultServer, tmp_path: Path) -> Scene:
    return Scene(server, tmp_path / "pristine")


def require_one_error_everywhere(
    scene: Scene, command: tuple[str, ...], disk: dict[str, Any], start: int, stride: int
) -> None:
    """Let every `stride`-th call fail in turn, from number `start`, and continue after each."""
    scene.server.warm_up(*command)
    n_calls = scene.count(*command, calls=disk.get("calls", ()))
    expected = scene.result()
    assert n_calls > 5
    for at in range(start, n_calls + 1, stride):
        scene.reset()
        done = scene.server.run(*command, at=at, **disk)
        require_one_message(done, is_sweep="-m" in command)
        scene.require_continued(command, expected)


def test_training_continues_after_a_fault_or_a_kill(scene: Scene) -> None:
    scene.begin_with(*PREPARE)
    assert scene.server.warm_up(*TRAIN).returncode == 0
    expected = scene.result()
    for disk, at in (("full", 55), ("read-only", 100)):
        scene.reset()
        done = scene.server.run(*TRAIN, at=at, **DISKS[disk])
        require_one_message(done, is_sweep=False)
        scene.require_continued(TRAIN, expected)
    scene.reset()
    assert scene.server.run(*TRAIN, at=70).returncode == -signal.SIGKILL
    scene.require_continued(TRAIN, expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize(
    ("before", "command", "stride"),
    [
        pytest.param((), PREPARE, 4, id="prepare"),
        pytest.param((PREPARE,), TRAIN, 9, id="train"),
        pytest.param((TRAIN,), RESUME, 19, id="resume"),
        pytest.param((TRAIN,), FORK, 29, id="fork"),
        pytest.param((PREPARE,), SWEEP, 89, id="sweep"),
        pytest.param((PREPARE,), STUDY, 149, id="study"),
        pytest.param((TRAIN,), REPORT, 1, id="report"),
    ],
)
def test_a_failing_disk_ends_any_command_with_one_error(
    before: tuple[tuple[str, ...], ...], command: tuple[str, ...], stride: int, disk: str, scene: Scene
) -> None:
    for each in before:
        scene.begin_with(*each)
    # Other calls for each kind of fault.
    require_one_error_everywhere(scene, command, DISKS[disk], 1 + list(DISKS).index(disk), stride)


def require_nothing_lost_by_kills(scene: Scene, command: tuple[str, ...], start: int, stride: int) -> int:
    """Kill the command at every `stride`-th call in turn, from number `start`, and continue after each."""
    scene.server.warm_up(*command)
    n_calls = scene.count(*command)
    expected = scene.result()
    for at in range(start, n_calls + 1, stride):
        scene.reset()
        done = scene.server.run(*command, at=at, is_short=at % 2 == 0)
        assert done.returncode == -signal.SIGKILL, f"call {at}: {done.stderr}"
        scene.require_continued(command, expected)
    return n_calls


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("before", "command", "stride", "at_least"),
    [
        pytest.param((), PREPARE, 1, 41, id="cache"),
        pytest.param((PREPARE,), TRAIN, 1, 105, id="train"),
        pytest.param((PREPARE,), SWEEP, 7, 42 * 7, id="sweep"),
        pytest.param((PREPARE,), STUDY, 10, 47 * 10, id="study"),
    ],
)
def test_a_kill_at_any_writing_call_loses_nothing(
    before: tuple[tuple[str, ...], ...], command: tuple[str, ...], stride: int, at_least: int, scene: Scene
) -> None:
    for each in before:
        scene.begin_with(*each)
    n_calls = require_nothing_lost_by_kills(scene, command, 1, stride)
    assert n_calls >= at_least
