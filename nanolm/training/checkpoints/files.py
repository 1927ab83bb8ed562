"""Checkpoints that are whole or not there.

A checkpoint is a folder: model.safetensors, state.safetensors and state.json (the rest of the state), and
manifest.json, which is written last and holds the sha256 of the others. Of a run that averages its weights there is
ema.safetensors besides. The folder gets its name when all of it is on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from nanolm import shell
from nanolm.errors import CheckpointError, DiskError
from nanolm.files import remove_tree, sync_folder, temporary_sibling
from nanolm.json_text import dump_json
from nanolm.training.checkpoints.state import copied, flatten, unflatten

WEIGHTS, TENSORS, SHAPE, MANIFEST = "model.safetensors", "state.safetensors", "state.json", "manifest.json"
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
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
    target = _folder_of(folder, snapshot.step)
    temporary = temporary_sibling(target)
    _remove_leftovers(folder)
    try:
        temporary.mkdir()
        # One entry at most: the order of several would be another in every process.
        shared = {"shared": dump_json(snapshot.shared)} if snapshot.shared else None
        safetensors.torch.save_file(snapshot.weights, temporary / WEIGHTS, shared)
        safetensors.torch.save_file(snapshot.tensors, temporary / TENSORS)
        (temporary / SHAPE).write_text(dump_json(snapshot.shape), encoding="utf-8")
        names = [WEIGHTS, TENSORS, SHAPE]
        if snapshot.averages is not None:
            safetensors.torch.save_file(snapshot.averages, temporary / AVERAGES)
            names.append(AVERAGES)
        files = {name: _describe(temporary / name) for name in names}
        for name in files:
            _sync_file(temporary / name)
        manifest = {"step": snapshot.step, **snapshot.about, "files": files}
        (temporary / MANIFEST).write_bytes(_sealed(manifest))
        _sync_file(temporary / MANIFEST)
        sync_folder(temporary)
        if target.exists():
            target.rename(_aside(target))
        temporary.rename(target)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        remove_tree(temporary, ignore_errors=True)
        raise DiskError(
            f"the checkpoint of step {snapshot.step} cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(folder),
            hint=f"make room, then go on from the last good checkpoint: {shell.resume_command(folder.parent)}",
        ) from error
    except BaseException:
        remove_tree(temporary, ignore_errors=True)
        raise
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
    manifest = _manifest(path)
    for fault in _faults(path, manifest):
        raise fault
    return Checkpoint(path, manifest)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, whose other files are not read; None where it is missing or damaged."""
    try:
        return _manifest(path)
    except CheckpointError:
        return None


def inspect(path: Path) -> tuple[dict[str, Any] | None, list[CheckpointError]]:
    """Reads every byte of a checkpoint, as `verify` does, and goes on where it would end.

    Returns:
        The manifest, None where it cannot be trusted, and what is wrong with each file that is damaged.
    """
    try:
        manifest = _manifest(path)
    except CheckpointError as error:
        return None, [error]
    return manifest, list(_faults(path, manifest))


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


def set_aside(folder: Path, newest_step: int) -> list[Path]:
    """Renames the checkpoints that are newer than the newest one that verifies, so that they count as none.

    Were they left among the others, `prune` would take them for the newest and remove the good ones.

    Returns:
        The new names, the newest first.
    """
    passed_over = [path for path in reversed(folders(folder)) if step_of(path) > newest_step]
    return [path.rename(_aside(path)) for path in passed_over]


def those_aside(folder: Path) -> list[Path]:
    """The damaged checkpoints that were kept under another name."""
    return sorted(folder.glob("step-*.replaced-*"))


def _first_of(error: RuntimeError) -> str:
    """The first of the misfits that torch lists, and how many there are."""
    _, *misfits = (line.strip() for line in str(error).splitlines() if line.strip())
    more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
    return misfits[0].rstrip(".") + more if misfits else str(error)


def _folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, without its seal.

    Raises:
        CheckpointError: it is missing, or is not to the byte what was written.
    """
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        manifest.pop("seal")
        assert content == _sealed(manifest), "altered"
        assert {WEIGHTS, TENSORS, SHAPE} <= set(manifest["files"])
        assert int(manifest["step"]) == step_of(path), "of another step"
        return manifest
    except Exception as error:
        how = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise _fault(path, MANIFEST, f"is {how}") from error


def _faults(path: Path, manifest: dict[str, Any]) -> Iterator[CheckpointError]:
    """What is wrong with each file that is not as the manifest says."""
    for name, expected in manifest["files"].items():
        try:
            found = _describe(path / name)
        except OSError as error:
            how = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            yield _fault(path, name, how)
            continue
        size, sha256 = expected["bytes"], expected["sha256"]
        if found["bytes"] != size:
            yield _fault(path, name, f"has {found['bytes']:,} bytes, and was saved with {size:,}")
        elif found["sha256"] != sha256:
            hashes = f"sha256 {found['sha256'][:16]}..., saved as {sha256[:16]}..."
            yield _fault(path, name, f"has been altered ({hashes})")


def _fault(path: Path, name: str, what: str) -> CheckpointError:
    hint = "take another checkpoint, or the file from a copy"
    return CheckpointError(f"{path.name}: {name} {what}", where=str(path / name), hint=hint)


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as it is written, with a hash of itself: its bytes are a function of what it says."""
    seal = hashlib.sha256(dump_json(manifest, sort_keys=True).encode()).hexdigest()
    return (dump_json({**manifest, "seal": seal}, indent=2) + "\n").encode()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove_leftovers(folder: Path) -> None:
    """What a killed save left; the lock on the run says that nobody is writing it."""
    for path in folder.glob(".step-*.tmp"):
        remove_tree(path, ignore_errors=True)


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
