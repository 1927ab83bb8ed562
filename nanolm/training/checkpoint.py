"""Checkpoints that are whole or not there.

A checkpoint is a folder: model.safetensors, state.safetensors and state.json (the rest of the state), and
manifest.json, which is written last and holds the sha256 of the others. The folder gets its name when all of it is on
disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from nanolm.errors import CheckpointError, DiskError
from nanolm.files import sync_folder
from nanolm.training.state import flatten, unflatten

WEIGHTS, TENSORS, SHAPE, MANIFEST = "model.safetensors", "state.safetensors", "state.json", "manifest.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A folder that has been read against its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates done when it was saved."""
        return int(self.manifest["step"])

    def load_weights(self, model: nn.Module) -> None:
        """Fills a model of the same shape.

        Raises:
            CheckpointError: the model has other parameters than the file.
        """
        try:
            safetensors.torch.load_model(model, self.path / WEIGHTS)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit the model: {' '.join(str(error).split())}",
                where=str(self.path / WEIGHTS),
                mend="the code of the model has changed since; use the version that the manifest names",
            ) from error

    def load_state(self) -> Any:
        """The rest of the state, as it was given to `save`."""
        shape = json.loads((self.path / SHAPE).read_text(encoding="utf-8"))
        return unflatten(shape, safetensors.torch.load_file(self.path / TENSORS))


def save(folder: Path, step: int, model: nn.Module, tree: Any, about: dict[str, Any]) -> Checkpoint:
    """Writes folder/step-N and reads it back.

    Args:
        folder: the run's checkpoints.
        step: updates done.
        model: its weights are saved, shared ones once.
        tree: the rest of the state: tensors and plain numbers in dicts and lists.
        about: what else the manifest says (versions, fingerprints, val_loss).

    Raises:
        CheckpointError: what was written does not read back.
        DiskError: the disk is full or fails. Nothing is left of the attempt, and older checkpoints stand.
    """
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
    target = folder / f"step-{step:08d}"
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    _remove_leftovers(folder)
    try:
        temporary.mkdir()
        safetensors.torch.save_model(model, str(temporary / WEIGHTS))
        shape, tensors = flatten(tree)
        safetensors.torch.save_file(tensors, temporary / TENSORS)
        (temporary / SHAPE).write_text(json.dumps(shape), encoding="utf-8")
        files = {name: _describe(temporary / name) for name in (WEIGHTS, TENSORS, SHAPE)}
        for name in files:
            _sync_file(temporary / name)
        manifest = {"step": step, **about, "files": files}
        (temporary / MANIFEST).write_bytes(_sealed(manifest))
        _sync_file(temporary / MANIFEST)
        sync_folder(temporary)
        if target.exists():
            target.rename(_aside(target))
        temporary.rename(target)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(
            f"the checkpoint of step {step} cannot be written: {getattr(error, 'strerror', None) or error}",
            where=str(folder),
            mend=f"make room, then go on from the last good checkpoint: nanolm train resume={folder.parent}",
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return verify(target)


def prune(folder: Path, best_step: int, newest: int = 2) -> None:
    """Removes all checkpoints but the best and the newest. Call it when the newest one has been verified.

    The newest two stay, so that damage to one on the disk does not end a run.
    """
    folders = _folders(folder)
    for path in folders[: max(len(folders) - newest, 0)]:
        if path.name != f"step-{best_step:08d}":
            # The manifest goes first: a removal that is cut off leaves no checkpoint that looks whole.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> Checkpoint:
    """Reads every byte of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing, cut short or altered.
    """
    mend = "take another checkpoint, or the file from a copy"
    try:
        content = (path / MANIFEST).read_bytes()
        manifest = json.loads(content)
        manifest.pop("seal")
        assert content == _sealed(manifest), "altered"
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
        assert {WEIGHTS, TENSORS, SHAPE} <= set(expected)
        int(manifest["step"])
    except Exception as error:
        raise CheckpointError(f"{path.name}: the manifest is missing or damaged", where=str(path), mend=mend) from error
    for name, (size, sha256) in expected.items():
        try:
            found = _describe(path / name)
        except OSError as error:
            raise CheckpointError(f"{path.name}: {name} is missing", where=str(path / name), mend=mend) from error
        if found["bytes"] != size:
            raise CheckpointError(
                f"{path.name}: {name} has {found['bytes']:,} bytes, and was saved with {size:,}",
                where=str(path / name),
                mend=mend,
            )
        if found["sha256"] != sha256:
            raise CheckpointError(
                f"{path.name}: {name} has been altered (sha256 {found['sha256'][:16]}..., saved as {sha256[:16]}...)",
                where=str(path / name),
                mend=mend,
            )
    return Checkpoint(path, manifest)


def newest(folder: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that verifies, and what is wrong with each newer one; those are left as they are.

    Returns:
        (None, []) where there are none.

    Raises:
        CheckpointError: there are some and none of them verifies.
    """
    damaged: list[CheckpointError] = []
    for path in reversed(_folders(folder)):
        try:
            return verify(path), damaged
        except CheckpointError as error:
            damaged.append(error)
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints can be used: " + "; ".join(error.found for error in damaged),
            where=str(folder),
            mend="take the folder from a copy; to start over, choose another run directory",
        )
    return None, []


def at_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, verified.

    Raises:
        CheckpointError: it is not there or is damaged.
    """
    path = folder / f"step-{step:08d}"
    if not path.is_dir():
        have = ", ".join(str(int(p.name.removeprefix("step-"))) for p in _folders(folder)) or "none"
        raise CheckpointError(f"there is no checkpoint of step {step}", where=str(folder), mend=f"there are: {have}")
    return verify(path)


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())


def _sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest as it is written, with a hash of itself: its bytes are a function of what it says."""
    seal = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "seal": seal}, indent=2) + "\n").encode()


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _remove_leftovers(folder: Path) -> None:
    """What a killed save left; the lock on the run says that nobody is writing it."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


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
