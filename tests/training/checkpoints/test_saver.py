import functools
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.config.trainer import TrainerConfig
from nanolm.errors import CheckpointError, DiskError, DivergedError
from nanolm.run_layout import checkpoints_by_step
from nanolm.runs.directory import RunDirectory
from nanolm.training import evaluation, trainer
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.pace import Pace
from nanolm.training.trainer import train
from tests.checkpoint_files import FACTS
from tests.helpers import small_config


def save(saver: Saver, step: int) -> None:
    saver.save(step, torch.nn.Linear(2, 2).state_dict(), {}, FACTS)


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Delays every write of a checkpoint until the event is set."""
    is_free, write = threading.Event(), checkpoint.write

    def wait_and_write(*arguments: Any) -> checkpoint.Checkpoint:
        assert is_free.wait(60)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", wait_and_write)
    return is_free


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"save_every": 4}, [4, 8, 12]),
        ({"save_every": 5, "keep_every": 6}, [5, 6, 10, 12]),
        ({"save_every": 100, "save_every_minutes": 1e-9}, list(range(1, 13))),
        ({"save_every": 100, "save_every_minutes": 60.0}, []),
    ],
)
def test_is_due_by_steps_and_minutes(changes: dict[str, Any], due: list[int], tmp_path: Path) -> None:
    saver = Saver(tmp_path, TrainerConfig(**changes), print)
    assert [step for step in range(1, 13) if saver.is_due(step)] == due


def test_minutes_count_from_the_last_save(tmp_path: Path) -> None:
    now = [0.0]
    settings = TrainerConfig(save_every=100, save_every_minutes=1.0)
    with Saver(tmp_path, settings, print, clock=lambda: now[0]) as saver:
        now[0] = 59
        assert not saver.is_due(1)
        now[0] = 60
        assert saver.is_due(1)
        save(saver, 1)
        now[0] = 119
        assert not saver.is_due(2)
        now[0] = 120
        assert saver.is_due(2)


def test_save_returns_while_the_checkpoint_is_written(tmp_path: Path, slow_disk: threading.Event) -> None:
    said: list[str] = []
    with Saver(tmp_path, TrainerConfig(), said.append) as saver:
        save(saver, 1)
        assert (said, checkpoints_by_step(tmp_path)) == ([], {})
        # The next save waits, so that there is one copy of the state at a time.
        threading.Timer(0.1, slow_disk.set).start()
        save(saver, 2)
        assert said[0] == "saved step-00000001"
    assert said == ["saved step-00000001", "saved step-00000002"]
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_save_in_foreground_waits_for_the_disk(tmp_path: Path) -> None:
    said: list[str] = []
    with Saver(tmp_path, TrainerConfig(save_in_background=False), said.append) as saver:
        save(saver, 1)
        assert said == ["saved step-00000001"]


def fail(*_: Any) -> None:
    raise DiskError("the disk is full")


def test_background_error_is_raised_by_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Saver(tmp_path, TrainerConfig(), print) as saver:
        monkeypatch.setattr(checkpoint, "write", fail)
        save(saver, 1)
        monkeypatch.undo()
        with pytest.raises(DiskError, match="the disk is full"):
            save(saver, 2)
        # There was room again.
        assert list(checkpoints_by_step(tmp_path)) == [2]
        save(saver, 3)
    assert list(checkpoints_by_step(tmp_path)) == [2, 3]


def test_background_error_is_raised_on_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "write", fail)

    def save_once() -> None:
        with Saver(tmp_path, TrainerConfig(), print) as saver:
            save(saver, 1)

    with pytest.raises(DiskError, match="the disk is full"):
        save_once()


def test_background_error_does_not_hide_an_error_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(checkpoint, "write", fail)

    def save_and_fail() -> None:
        with Saver(tmp_path, TrainerConfig(), said.append) as saver:
            save(saver, 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save_and_fail()
    assert said == ["the disk is full"]


def test_background_and_foreground_saves_are_identical(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Times are part of the state, so they are made equal.
    monkeypatch.setattr(trainer, "Pace", functools.partial(Pace, clock=lambda: 0.0))
    for module in (trainer, evaluation):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: 0.0))
    found = []
    for in_background in ("true", "false"):
        run = RunDirectory(tmp_path / in_background)
        run.path.mkdir()
        line = ("trainer.max_steps=30", "trainer.save_every=4", "trainer.eval_every=10", "trainer.keep_last=null")
        train(small_config(small_text, "model.dropout=0.3", *line, f"trainer.save_in_background={in_background}"), run)
        files = [path for path in run.checkpoints.rglob("*") if path.is_file()] + [run.metrics]
        found.append({path.relative_to(run.path): path.read_bytes() for path in files})
    assert len(found[0]) == 4 * 9 + 1
    assert found[0] == found[1]


def test_saving_by_time_does_not_change_training(small_text: Path, tmp_path: Path) -> None:
    weights = []
    for minutes in ("null", "1e-9"):
        run = RunDirectory(tmp_path / minutes)
        run.path.mkdir()
        line = ("model.dropout=0.3", "trainer.max_steps=12", "trainer.save_every=100", "trainer.keep_last=null")
        train(small_config(small_text, *line, f"trainer.save_every_minutes={minutes}"), run)
        assert len(checkpoints_by_step(run.checkpoints)) == (1 if minutes == "null" else 12)
        weights.append((run.checkpoints / "step-00000012" / checkpoint.WEIGHTS).read_bytes())
    assert weights[0] == weights[1]


def test_run_completes_after_its_last_checkpoint_is_on_disk(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    status, write = [], checkpoint.write

    def slow(*arguments: Any) -> checkpoint.Checkpoint:
        time.sleep(0.5)
        status.append(run.read_summary().status)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    train(small_config(small_text, "trainer.max_steps=3"), run)
    assert status == ["running"]
    assert run.read_summary().status == "completed"
    assert (run.checkpoints / "step-00000003").is_dir()


def test_diverged_run_names_a_checkpoint_still_being_written(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint.write

    def slow(*arguments: Any) -> checkpoint.Checkpoint:
        time.sleep(0.5)
        return write(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    line = ("trainer.save_every=1", "trainer.max_steps=50", "optimizer.lr=1e20", "trainer.clip_norm=null")
    with pytest.raises(DivergedError) as caught:
        train(small_config(small_text, *line), RunDirectory(tmp_path))
    found, _ = checkpoint.newest(RunDirectory(tmp_path).checkpoints)
    assert found is not None
    assert f"last good checkpoint: {found.path.name}" in str(caught.value)


def test_checkpoint_that_does_not_verify_ends_the_run(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    line = ("trainer.max_steps=6", "trainer.save_every=2")
    verify = checkpoint.verify

    def worn_out(path: Path) -> checkpoint.Checkpoint:
        if path.name == "step-00000004":
            content = bytearray((path / checkpoint.TENSORS).read_bytes())
            content[-1] ^= 1
            (path / checkpoint.TENSORS).write_bytes(bytes(content))
        return verify(path)

    monkeypatch.setattr(checkpoint, "verify", worn_out)
    with pytest.raises(CheckpointError, match=r"step-00000004: state\.safetensors has been altered"):
        train(small_config(small_text, *line), run)
    assert run.read_summary().status == "failed"
    # No checkpoint is pruned for one that does not verify, and the run resumes from the previous one.
    assert checkpoint.at_step(run.checkpoints, 2).step == 2
    monkeypatch.undo()
    assert train(small_config(small_text, *line), run).summary.status == "completed"
