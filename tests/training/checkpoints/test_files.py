import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.errors import CheckpointError, DiskError
from nanolm.training.checkpoints import files as checkpoint
from tests.checkpoint_files import FACTS

FILES = (checkpoint.WEIGHTS, checkpoint.TENSORS, checkpoint.STRUCTURE, checkpoint.MANIFEST)


def save(folder: Path, step: int, value: float = 1.0) -> checkpoint.Checkpoint:
    model = torch.nn.Linear(4, 3)
    torch.nn.init.constant_(model.weight, value)
    state = {"scalars": {"step": step}, "moment": torch.full((4,), value)}
    return checkpoint.write(
        folder, checkpoint.take_snapshot(step, model.state_dict(), state, FACTS | {"val_loss": value})
    )


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    saved = save(tmp_path / "c", 7, 2.5)
    assert (saved.path.name, saved.step, saved.manifest["val_loss"]) == ("step-00000007", 7, 2.5)
    found, damaged = checkpoint.newest(tmp_path / "c")
    assert found is not None
    assert damaged == []
    model = torch.nn.Linear(4, 3)
    found.load_weights(model)
    assert torch.equal(model.weight, torch.full((3, 4), 2.5))
    state = found.load_state()
    assert state["scalars"] == {"step": 7}
    assert torch.equal(state["moment"], torch.full((4,), 2.5))


def test_tied_weights_are_saved_once(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    model[1].weight = model[0].weight
    saved = checkpoint.write(tmp_path, checkpoint.take_snapshot(1, model.state_dict(), {}, FACTS))
    assert (saved.path / checkpoint.WEIGHTS).stat().st_size < 2 * 64 * 64 * 4
    other = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 64, bias=False))
    other[1].weight = other[0].weight
    saved.load_weights(other)
    assert torch.equal(other[1].weight, model[1].weight)


def test_newest_of_missing_folder_is_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0, 0.01, 0.1, 0.5, 0.99])
def test_truncated_checkpoint_falls_back_to_previous(name: str, cut: float, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2).path / name
    size = path.stat().st_size
    os.truncate(path, int(size * cut))
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert damaged[0].found.startswith(f"step-00000002: {name} ")
    assert damaged[0].where == str(path)
    assert path.exists()


def test_flipped_bit_is_found(tmp_path: Path) -> None:
    generator = random.Random(0)
    save(tmp_path, 1)
    path = save(tmp_path, 2).path
    for n in range(100):
        victim = path / FILES[n % len(FILES)]
        whole = victim.read_bytes()
        flipped = bytearray(whole)
        bit = generator.randrange(8 * len(flipped))
        flipped[bit // 8] ^= 1 << bit % 8
        victim.write_bytes(bytes(flipped))
        found, damaged = checkpoint.newest(tmp_path)
        assert found is not None
        assert (found.step, len(damaged)) == (1, 1), f"bit {bit} of {victim.name}"
        assert damaged[0].found.startswith(f"step-00000002: {victim.name} "), f"bit {bit} of {victim.name}"
        victim.write_bytes(whole)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 2


def test_only_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    os.truncate(save(tmp_path, 1).path / checkpoint.WEIGHTS, 3)
    (save(tmp_path, 2).path / checkpoint.TENSORS).unlink()
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints[\s\S]*is missing[\s\S]*has 3 bytes"):
        checkpoint.newest(tmp_path)


def test_saving_a_damaged_step_again_quarantines_it(tmp_path: Path) -> None:
    os.truncate(save(tmp_path, 2).path / checkpoint.WEIGHTS, 3)
    save(tmp_path, 2, 5.0)
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.manifest["val_loss"], damaged) == (5.0, [])
    assert (tmp_path / "step-00000002.replaced-1").is_dir()
    with pytest.raises(CheckpointError):
        checkpoint.verify(tmp_path / "step-00000002.replaced-1")
    save(tmp_path, 2)
    with pytest.raises(CheckpointError, match="belongs to another step"):
        checkpoint.verify(tmp_path / "step-00000002.replaced-2")


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (2, None, [2, 6, 7]),
        (1, None, [2, 7]),
        (3, 4, [2, 4, 5, 6, 7]),
        (1, 3, [2, 3, 6, 7]),
        (None, None, [1, 2, 3, 4, 5, 6, 7]),
        (20, None, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_prune_keeps_best_last_and_every(
    keep: int | None, keep_every: int | None, left: list[int], tmp_path: Path
) -> None:
    for step in range(1, 8):
        save(tmp_path, step)
        checkpoint.prune(tmp_path, best_step=2, keep_last=keep, keep_every=keep_every)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in left]
    assert checkpoint.at_step(tmp_path, 2).step == 2
    if 3 not in left:
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 3[\s\S]*existing checkpoints: 2"):
            checkpoint.at_step(tmp_path, 3)


def test_prune_does_not_count_quarantined(tmp_path: Path) -> None:
    for step in (1, 5, 6):
        saved = save(tmp_path, step)
        if step > 1:
            os.truncate(saved.path / checkpoint.WEIGHTS, 9)
    aside = checkpoint.quarantine(tmp_path, newest_step=1)
    assert [path.name for path in aside] == ["step-00000006.replaced-1", "step-00000005.replaced-1"]
    save(tmp_path, 2)
    checkpoint.prune(tmp_path, best_step=0, keep_last=1, keep_every=None)
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (2, [])
    assert checkpoint.quarantined(tmp_path) == sorted(aside)


def test_steps_are_ordered_numerically(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 100_000_000


def test_snapshot_is_not_changed_by_later_steps(tmp_path: Path) -> None:
    model, moment = torch.nn.Linear(2, 2), torch.zeros(3)
    snapshot = checkpoint.take_snapshot(
        1, model.state_dict(), {"moment": moment, "transposed": moment.expand(2, 3).T}, FACTS
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.constant_(model.weight, 9.0)
    moment += 1
    saved = checkpoint.write(tmp_path, snapshot)
    saved.load_weights(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(saved.load_state()["moment"], torch.zeros(3))
    assert saved.load_state()["transposed"].shape == (3, 2)


def test_write_waits_for_the_copies_of_a_gpu(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    snapshot = checkpoint.take_snapshot(1, model.state_dict(), {}, FACTS)

    class Event:
        """Copies that end late."""

        def synchronize(self) -> None:
            snapshot.tensors[checkpoint.WEIGHTS]["weight"].fill_(7.0)

    late = dataclasses.replace(snapshot, copied=Event())  # type: ignore[arg-type]
    checkpoint.write(tmp_path, late).load_weights(model)
    assert model.weight.unique().tolist() == [7.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_snapshot_of_a_gpu_is_pinned_and_not_changed_by_later_steps(tmp_path: Path) -> None:
    model = torch.nn.Linear(4096, 4096, device="cuda")
    expected = model.weight.detach().cpu()
    snapshot = checkpoint.take_snapshot(1, model.state_dict(), {"momentum": model.weight}, FACTS)
    assert all(tensor.is_pinned() for tensors in snapshot.tensors.values() for tensor in tensors.values())
    with torch.no_grad():
        model.weight.zero_()
    restored = torch.nn.Linear(4096, 4096)
    saved = checkpoint.write(tmp_path, snapshot)
    saved.load_weights(restored)
    assert torch.equal(restored.weight, expected)
    assert torch.equal(saved.load_state()["momentum"], expected)


def test_bytes_are_a_function_of_the_state(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3) for name in "abcdef"})
    for name in "bcdef":
        model[name].weight = model["a"].weight
    saved = [
        checkpoint.write(tmp_path / str(n), checkpoint.take_snapshot(1, model.state_dict(), {}, FACTS)).path
        for n in range(4)
    ]
    assert len({tuple((path / name).read_bytes() for name in FILES) for path in saved}) == 1


def test_failing_disk_leaves_only_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_leftovers_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.1.tmp").mkdir()
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        saved.load_weights(torch.nn.Linear(4, 5))
