"""A save that ends in the middle of anything: the checkpoint before it or its own loads, and its rest is swept.

Children of a process that has torch loaded save, and are ended by force at each of their calls to the system in turn.
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
from tests.forks import FORKS

# The calls by which a save reaches the disk.
REACHES_DISK = {
    "mkdir", "open", "serialize_file", "write", "flush", "__exit__", "fsync", "rename", "unlink", "rmdir",
}  # fmt: skip
CRASHED = 77


def save(saver: Saver, step: int) -> None:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, float(step))
    tree = {"scalars": {"step": step}, "moment": torch.full((4,), float(step))}
    saver.save(step, model.state_dict(), tree, {"val_loss": None}, best_step=0)


def saver_of(folder: Path, said: Path | None = None) -> Saver:
    def announce(line: str) -> None:
        if said is not None:
            said.write_text(line)

    return Saver(folder, TrainerConfig(keep_last=1), announce)


def save_and_crash(folder: Path, said: Path, crash_at: int, loses_power: bool) -> None:
    """Saves step 2 and ends this process at the crash_at-th begin or end of a call that reaches the disk.

    Losing power takes with it what was not brought to disk: half of every such file, and a name that is new.
    """
    synced: set[int] = set()
    named_since: list[bool] = [False]
    left = crash_at
    fsync = os.fsync

    def crash() -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        if loses_power:
            for path in folder.rglob("*"):
                if path.is_file() and path.stat().st_ino not in synced and path.parent.name != "step-00000001":
                    os.truncate(path, path.stat().st_size // 2)
            if named_since[0]:
                shutil.rmtree(folder / "step-00000002", ignore_errors=True)
        os._exit(CRASHED)

    def watch(frame: FrameType, event: str, what: Any) -> None:
        nonlocal left
        if event not in ("c_call", "c_return") or what.__name__ not in REACHES_DISK:
            return
        if threading.current_thread().name.startswith("checkpoint"):
            left -= 1
            if left == 0:
                crash()

    def recorded(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)
        if os.fstat(descriptor).st_ino == folder.stat().st_ino:
            named_since[0] = False

    rename = os.rename

    def renamed(source: Path, target: Path) -> None:
        named_since[0] = named_since[0] or Path(target).name == "step-00000002"
        rename(source, target)

    os.fsync, os.rename = recorded, renamed  # type: ignore[assignment]
    # The thread that saves begins after this, and has it from its start.
    threading.setprofile(watch)
    with saver_of(folder, said) as saver:
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
def test_a_save_that_ends_between_any_two_calls(loses_power: bool, stride: int, tmp_path: Path) -> None:
    first = tmp_path / "first"
    with saver_of(first) as saver:
        save(saver, 1)
    crash_at, steps = 1 - stride, []
    while True:
        crash_at += stride
        folder, said = tmp_path / f"{crash_at}", tmp_path / f"{crash_at}.said"
        shutil.copytree(first, folder)
        child = FORKS.Process(target=save_and_crash, args=(folder, said, crash_at, loses_power))
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
        # What was announced is never taken back.
        assert found.step == 2 or not said.exists()
        with saver_of(folder) as saver:
            save(saver, 3)
        assert [path.name for path in folder.iterdir()] == ["step-00000003"], f"crash {crash_at}"
        shutil.rmtree(folder)
    assert steps == sorted(steps)
    # A begin and an end of each: 4 files written and brought to disk, 3 folders, a rename, the removal of the old one.
    assert steps.count(1) > 40 // stride
    assert steps.count(2) > 10 // stride
