"""Checkpoints that are whole or not there.

A checkpoint is a folder: model.safetensors, state.safetensors and state.json (the rest of the state), and
manifest.json, which is written last and holds the sha256 of the others. Of a run that averages its weights there is
ema.safetensors besides. The folder gets its name when all of it is on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from nanolm import checksummed, shell
from nanolm.checksummed import MANIFEST
from nanolm.errors import CheckpointError, DiskError
from nanolm.files import remove_tree, sync_folder, temporary_sibling
from nanolm.json_text import dump_json
from nanolm.training.checkpoints.state import copied, flatten, unflatten

WEIGHTS, TENSORS, SHAPE = "model.safetensors", "state.safetensors", "state.json"
AVERAGES = "ema.safetensors"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder that has been read against its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done when it was saved."""
        return int(self.manifest["step"])

    def numbers(self) -> dict[str, Any]:
        """The plain numbers of the state (TrainState.numbers), without reading its tensors."""
        return unflatten(dict(self._shape()["dict"])["numbers"], {})

    def load_weights(self, model: nn.Module) -> None:
        """Fills a model of the same shape.

        Raises:
            CheckpointError: the model has other parameters than the file.
        """
        try:
            safetensors.torch.load_model(model, self.path / WEIGHTS)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit the model: {_first_of(error)}",
                where=str(self.path / WEIGHTS),
                hint="the code of the model has changed since; use the version that the manifest names",
            ) from error

    def load_state(self) -> Any:
        """The rest of the state, as it was given to `save`."""
        return unflatten(self._shape(), safetensors.torch.load_file(self.path / TENSORS))

    def load_averages(self) -> dict[str, torch.Tensor] | None:
        """The averaged weights by their names; None of a run that averages none."""
        return safetensors.torch.load_file(self.path / AVERAGES) if AVERAGES in self.manifest["files"] else None

    def _shape(self) -> Any:
        return json.loads((self.path / SHAPE).read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from: a run between two steps, in memory of its own that no later step changes.

    Attributes:
        step: updates done.
        weights: the model's, on the CPU, shared ones once.
        shared: the other names of shared weights, each with the name that is in `weights`.
        shape: the rest of the state without its tensors (`flatten`).
        tensors: those, on the CPU.
        averages: of the weights, on the CPU, by name; None where there are none.
        about: what else the manifest says (versions, fingerprints, val_loss).
    """

    step: int
    weights: dict[str, torch.Tensor]
    shared: dict[str, str]
    shape: Any
    tensors: dict[str, torch.Tensor]
    averages: dict[str, torch.Tensor] | None
    about: dict[str, Any]


def take(
    step: int, model: nn.Module, tree: Any, about: dict[str, Any], averages: dict[str, torch.Tensor] | None = None
) -> Snapshot:
    """Copies a run's state, which takes as much memory again on the CPU.

    Args:
        step: updates done.
        model: its weights are saved, shared ones once.
        tree: the rest of the state: tensors and plain numbers in dicts and lists.
        about: what else the manifest says.
        averages: of the weights, by name, if there are any.
    """
    names: dict[Any, str] = {}
    weights, shared = {}, {}
    for name, tensor in sorted(model.state_dict().items()):
        memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else name
        first = names.setdefault(memory, name)
        if first == name:
            weights[name] = copied(tensor)
        else:
            shared[name] = first
    kept = None if averages is None else {name: copied(average) for name, average in averages.items()}
    return Snapshot(step, weights, shared, *flatten(tree), kept, about)


def write(folder: Path, snapshot: Snapshot) -> Checkpoint:
    """Writes folder/step-N and reads it back.

    Args:
        folder: the run's checkpoints.
        snapshot: the bytes on the disk are a function of it.

    Raises:
        CheckpointError: what was written does not read back.
        DiskError: the disk is full or fails. Nothing is left of the attempt, and older checkpoints stand.
    """
    target = _folder_of(folder, snapshot.step)
    try:
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
        # Leftovers of a killed save: the lock on the run ensures that no other process is writing one.
        checksummed.remove_leftovers(folder, "step-*")
        with checksummed.FolderWriter(target) as writer:
            # At most one entry: safetensors writes several in an order that differs between processes.
            shared = {"shared": dump_json(snapshot.shared)} if snapshot.shared else None
            safetensors.torch.save_file(snapshot.weights, writer.path / WEIGHTS, shared)
            safetensors.torch.save_file(snapshot.tensors, writer.path / TENSORS)
            (writer.path / SHAPE).write_text(dump_json(snapshot.shape), encoding="utf-8")
            names = [WEIGHTS, TENSORS, SHAPE]
            if snapshot.averages is not None:
                safetensors.torch.save_file(snapshot.averages, writer.path / AVERAGES)
                names.append(AVERAGES)
            for name in names:
                writer.add(name)
            manifest = {"step": snapshot.step, **snapshot.about}
            writer.commit(manifest, move_existing_to=_aside(target) if target.exists() else None)
    except (OSError, SafetensorError) as error:
        raise DiskError(
            f"the checkpoint of step {snapshot.step} cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(folder),
            hint=f"free some disk space, then resume the run: {shell.resume_command(folder.parent)}",
        ) from error
    return verify(target)


def prune(folder: Path, best_step: int, keep: int | None, keep_every: int | None) -> None:
    """Removes the checkpoints that need not stay. Call it when the newest one has been verified.

    Args:
        folder: the run's checkpoints.
        best_step: the step of one that stays.
        keep: how many of the newest stay; None: all.
        keep_every: multiples of so many steps stay; None: none for that.
    """
    for path in folders(folder)[:-keep] if keep else []:
        step = step_of(path)
        if step != best_step and not (keep_every and step % keep_every == 0):
            # Out of sight in one step: a removal that is cut off leaves nothing that looks like a checkpoint.
            leaving = temporary_sibling(path)
            path.rename(leaving)
            remove_tree(leaving, ignore_errors=True)


def verify(path: Path) -> Checkpoint:
    """Reads every byte of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing, cut short or altered.
    """
    manifest, damage = inspect(path)
    if damage:
        raise damage[0]
    assert manifest is not None, "an intact checkpoint has a manifest"
    return Checkpoint(path, manifest)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint, or None if it is missing or damaged. No other file is read."""
    manifest = checksummed.read_manifest(path)
    return manifest if manifest and manifest.get("step") == step_of(path) else None


def inspect(path: Path) -> tuple[dict[str, Any] | None, list[CheckpointError]]:
    """Read every byte of a checkpoint.

    Returns:
        The manifest, None if it is missing or damaged, and an error for each damaged file.
    """
    manifest = read_manifest(path)
    damage = list(checksummed.find_damage(path))
    if manifest is None and not damage:
        damage = [checksummed.Damage(MANIFEST, "belongs to another step")]
    hint = "use another checkpoint, or restore the file from a copy"
    return manifest, [
        CheckpointError(f"{path.name}: {found}", where=str(path / found.name), hint=hint) for found in damage
    ]


def newest(folder: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that verifies, and what is wrong with each newer one; those are left as they are.

    Returns:
        (None, []) where there are none.

    Raises:
        CheckpointError: there are some and none of them verifies.
    """
    damaged: list[CheckpointError] = []
    for path in reversed(folders(folder)):
        try:
            return verify(path), damaged
        except CheckpointError as error:
            damaged.append(error)
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints can be used: " + "; ".join(error.found for error in damaged),
            where=str(folder),
            hint="take the folder from a copy; to start over, choose another run directory",
        )
    return None, []


def at_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, verified.

    Raises:
        CheckpointError: it is not there or is damaged.
    """
    path = _folder_of(folder, step)
    if not path.is_dir():
        have = ", ".join(str(step_of(path)) for path in folders(folder)) or "none"
        raise CheckpointError(f"there is no checkpoint of step {step}", where=str(folder), hint=f"there are: {have}")
    return verify(path)


def folders(folder: Path) -> list[Path]:
    """Checkpoint folders, damaged ones among them, the oldest first."""
    found = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that the folder of a checkpoint is named after."""
    return int(path.name.removeprefix("step-"))


def quarantine(folder: Path, newest_step: int) -> list[Path]:
    """Renames the checkpoints that are newer than the newest one that verifies, so that they count as none.

    Were they left among the others, `prune` would take them for the newest and remove the good ones.

    Returns:
        The new names, the newest first.
    """
    passed_over = [path for path in reversed(folders(folder)) if step_of(path) > newest_step]
    return [path.rename(_aside(path)) for path in passed_over]


def quarantined(folder: Path) -> list[Path]:
    """The damaged checkpoints that were kept under another name."""
    return sorted(folder.glob("step-*.replaced-*"))


def _first_of(error: RuntimeError) -> str:
    """The first of the misfits that torch lists, and how many there are."""
    _, *misfits = (line.strip() for line in str(error).splitlines() if line.strip())
    more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
    return misfits[0].rstrip(".") + more if misfits else str(error)


def _folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _aside(path: Path) -> Path:
    """A free name beside a checkpoint that is in the way (a damaged one, passed over by a resume)."""
    names: Iterator[Path] = (path.with_name(f"{path.name}.replaced-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def weights_only(checkpoint: Checkpoint, model: nn.Module, device: torch.device) -> nn.Module:
    """The model with the checkpoint's weights, on a device, without dropout."""
    checkpoint.load_weights(model)
    with contextlib.suppress(AttributeError):
        model.requires_grad_(False)
    return model.to(device).eval()
