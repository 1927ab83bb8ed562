"""Crashes in the middle of a save: the previous or the new checkpoint loads, and leftovers are removed.

Child processes save, and are terminated at each of their system calls in turn.
"""

import os
import shutil
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from nanolm.config.trainer import TrainerConfig
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.saver import Saver
from tests.checkpoint_files import FACTS
from tests.forks import FORKS

# Functions by which a save writes to the disk.
DISK_CALLS = {
    "mkdir", "open", "serialize_file", "write", "flush", "__exit__", "fsync", "rename", "unlink", "rmdir",
}  # fmt: skip
CRASHED = 77


def save(saver: Saver, step: int) -> None:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, float(step))
    state = {"scalars": {"step": step}, "moment": torch.full((4,), float(step))}
    saver.save(step, model.state_dict(), state, FACTS)


def make_saver(folder: Path, log: Path | None = None) -> Saver:
    def announce(line: str) -> None:
        if log is not None:
            log.write_text(line)

    return Saver(folder, TrainerConfig(keep_last=1), announce)


def save_and_crash(folder: Path, log: Path, crash_at: int, loses_power: bool) -> None:
    """Save step 2, and end this process at the start or end number `crash_at` of a call that writes to the disk.

    A loss of power also loses unflushed data: half of every unflushed file, and a new name.
    """
    synced: set[int] = set()
    is_name_unflushed: list[bool] = [False]
    n_left = crash_at
    fsync = os.fsync

    def crash() -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        if loses_power:
            for path in folder.rglob("*"):
                if path.is_file() and path.stat().st_ino not in synced and path.parent.name != "step-00000001":
                    os.truncate(path, path.stat().st_size // 2)
            if is_name_unflushed[0]:
                shutil.rmtree(folder / "step-00000002", ignore_errors=True)
        os._exit(CRASHED)

    def watch(frame: FrameType, event: str, what: Any) -> None:
        nonlocal n_left
        if event not in ("c_call", "c_return") or what.__name__ not in DISK_CALLS:
            return
        if threading.current_thread().name.startswith("checkpoint"):
            n_left -= 1
            if n_left == 0:
                crash()

    def record_fsync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            is_name_unflushed[0] = False

    rename = os.rename

    def record_rename(source: Path, target: Path) -> None:
        is_name_unflushed[0] = is_name_unflushed[0] or Path(target).name == "step-00000002"
        rename(source, target)

    os.fsync, os.rename = record_fsync, record_rename  # type: ignore[assignment]
    # The profile function applies to threads started after this, including the one that saves.
    threading.setprofile(watch)
    with make_saver(folder, log) as saver:
        save(saver, 2)
    os._exit(0)


@pytest.mark.parametrize(
    ("loses_power", "stride"),
    [
        pytest.param(False, 4, id="killed, every fourth"),
        pytest.param(True, 4, id="without power, every fourth"),
        pytest.param(False, 1, id="killed", marks=pytest.mark.slow),
        pytest.param(True, 1, id="without power", marks=pytest.mark.slow),
    ],
)
def test_a_crash_between_any_two_calls_keeps_a_checkpoint(loses_power: bool, stride: int, tmp_path: Path) -> None:
    first = tmp_path / "first"
    with make_saver(first) as saver:
        save(saver, 1)
    crash_at, steps = 1 - stride, []
    while True:
        crash_at += stride
        folder, log = tmp_path / f"{crash_at}", tmp_path / f"{crash_at}.log"
        shutil.copytree(first, folder)
        child = FORKS.Process(target=save_and_crash, args=(folder, log, crash_at, loses_power))
        child.start()
        child.join(60)
        if child.exitcode == 0:
            break
        assert child.exitcode == CRASHED
        found, damaged = checkpoint.newest(folder)
        assert found is not None
        steps.append(found.step)
        assert damaged == [], f"crash {crash_at}"
        assert torch.equal(found.load_state()["moment"], torch.full((4,), float(found.step)))
        # A checkpoint that was reported as saved must exist.
        assert found.step == 2 or not log.exists()
        with make_saver(folder) as saver:
            save(saver, 3)
        assert [path.name for path in folder.iterdir()] == ["step-00000003"], f"crash {crash_at}"
        shutil.rmtree(folder)
    assert steps == sorted(steps)
    # Start and end of each call: 4 files written and flushed, 3 folders, a rename, the removal of the old checkpoint.
    assert steps.count(1) > 40 // stride
    assert steps.count(2) > 10 // stride
