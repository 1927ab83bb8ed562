import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.errors import CheckpointError, DiskError
from nanolm.training import checkpoint

FILES = (checkpoint.WEIGHTS, checkpoint.TENSORS, checkpoint.SHAPE, checkpoint.MANIFEST)


def save(folder: Path, step: int, value: float = 1.0) -> checkpoint.Checkpoint:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, value)
    tree = {"numbers": {"step": step}, "moment": torch.full((4,), value)}
    return checkpoint.save(folder, step, model, tree, {"val_loss": value})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = save(tmp_path / "c", 7, 2.5)
    assert (saved.path.name, saved.step, saved.manifest["val_loss"]) == ("step-00000007", 7, 2.5)
    found, damaged = checkpoint.newest(tmp_path / "c")
    assert found is not None
    assert damaged == []
    model = torch.nn.Linear(4, 3)
    found.load_weights(model)
    assert torch.equal(model.weight, torch.full((3, 4), 2.5))
    state = found.load_state()
    assert state["numbers"] == {"step": 7}
    assert torch.equal(state["moment"], torch.full((4,), 2.5))


def test_shared_weights_are_saved_once(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    saved = checkpoint.save(tmp_path, 1, model, {}, {})
    assert (saved.path / checkpoint.WEIGHTS).stat().st_size < 2 * 64 * 64 * 4
    other = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    other[1].weight = other[0].weight
    saved.load_weights(other)
    assert torch.equal(other[1].weight, model[1].weight)


def test_none_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0, 1, 0.1, 0.5, 0.99])
def test_a_cut_is_found_and_the_one_before_is_used(name: str, cut: float, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2).path / name
    size = path.stat().st_size
    os.truncate(path, cut if cut in (0, 1) else int(size * cut))
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert "step-00000002" in damaged[0].found
    assert path.exists()


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    generator = random.Random(0)
    save(tmp_path, 1)
    path = save(tmp_path, 2).path
    for _ in range(40):
        victim = path / generator.choice(FILES)
        whole = victim.read_bytes()
        flipped = bytearray(whole)
        bit = generator.randrange(8 * len(flipped))
        flipped[bit // 8] ^= 1 << bit % 8
        victim.write_bytes(bytes(flipped))
        found, damaged = checkpoint.newest(tmp_path)
        assert found is not None
        assert (found.step, len(damaged)) == (1, 1), f"bit {bit} of {victim.name}"
        victim.write_bytes(whole)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_none_valid_while_some_exist_is_an_error(tmp_path: Path) -> None:
    os.truncate(save(tmp_path, 1).path / checkpoint.WEIGHTS, 3)
    (save(tmp_path, 2).path / checkpoint.TENSORS).unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints[\s\S]*is missing[\s\S]*has 3 bytes"):
        checkpoint.newest(tmp_path)


def test_a_step_saved_again_replaces_a_damaged_one_and_keeps_it(tmp_path: Path) -> None:
    os.truncate(save(tmp_path, 2).path / checkpoint.WEIGHTS, 3)
    save(tmp_path, 2, 5.0)
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.manifest["val_loss"], damaged) == (5.0, [])
    assert (tmp_path / "step-00000002.replaced-1").is_dir()


def test_pruning_keeps_the_best_and_the_newest_two(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
        checkpoint.prune(tmp_path, best_step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in (2, 4, 5)]
    assert checkpoint.at_step(tmp_path, 2).step == 2
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3[\s\S]*there are: 2, 4, 5"):
        checkpoint.at_step(tmp_path, 3)


def test_a_failing_disk_leaves_the_old_one_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    calls: list[Any] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="the checkpoint of step 2 cannot be written: No space left"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_the_rest_of_a_killed_save_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.1.tmp").mkdir()
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        saved.load_weights(torch.nn.Linear(4, 5))
