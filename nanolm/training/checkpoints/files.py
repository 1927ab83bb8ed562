"""Checkpoint folders: written atomically, verified by checksum, pruned.

A checkpoint is a folder step-N with model.safetensors, state.safetensors and state.json (all other state, split into
tensors and structure), ema.safetensors if the run averages its weights, and manifest.json (`nanolm.checksummed`). Of a
model with low-rank adapters, model.safetensors has the adapters; all other weights are in `base`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from nanolm import checksummed, shell
from nanolm.checksummed import MANIFEST
from nanolm.errors import CheckpointError, write_failure
from nanolm.files import remove_tree, sync_folder, temporary_sibling
from nanolm.json_text import dump_json
from nanolm.run_layout import checkpoints_by_step
from nanolm.training.checkpoints.checkpoint import Checkpoint, damaged
from nanolm.training.checkpoints.header import read_header
from nanolm.training.checkpoints.manifest import AVERAGES, STRUCTURE, TENSORS, WEIGHTS, manifest_problem
from nanolm.training.checkpoints.serialization import cpu_copy, flatten, record_copies, storage_key

# Damaged checkpoints that an error lists.
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A copy of the state of a run between two steps, in host memory that later steps do not change.

    Attributes:
        step: optimizer steps done.
        tensors: the tensors of each file by name; tied weights are in it once.
        tied: the other names of tied weights, each with the name that is in the file.
        structure: all other state without its tensors (`flatten`).
        facts: further entries of the manifest (versions, fingerprints, losses).
        copied: the event of the GPU after which the tensors can be read; None if they can be read now.
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    tied: dict[str, str]
    structure: Any
    facts: dict[str, Any]
    copied: torch.cuda.Event | None = None


def take_snapshot(
    step: int,
    weights: Mapping[str, torch.Tensor],
    state: Any,
    facts: dict[str, Any],
    averages: dict[str, torch.Tensor] | None = None,
) -> Snapshot:
    """Copy the state of a run to host memory. The host does not wait for the copies of a GPU, but `write` does.

    Args:
        weights: the full state dict of the model, in which tied weights share their memory.
        state: all other state: tensors and plain values in nested dicts, lists and tuples.
        averages: averaged weights by name, if there are any.
    """
    first_names: dict[Any, str] = {}
    untied, tied = {}, {}
    for name, tensor in sorted(weights.items()):
        first_name = first_names.setdefault(storage_key(name, tensor), name)
        if first_name == name:
            untied[name] = cpu_copy(tensor)
        else:
            tied[name] = first_name
    structure, other = flatten(state)
    tensors = {WEIGHTS: untied, TENSORS: other}
    if averages is not None:
        tensors[AVERAGES] = {name: cpu_copy(average) for name, average in averages.items()}
    return Snapshot(step, tensors, tied, structure, facts, record_copies())


def write(folder: Path, snapshot: Snapshot) -> Checkpoint:
    """Write folder/step-N atomically and verify it. Its bytes are a function of the snapshot.

    Raises:
        CheckpointError: the written files do not verify.
        DiskError: the disk is full or fails; older checkpoints are unchanged and nothing else is left.
    """
    target = checkpoint_folder(folder, snapshot.step)
    if snapshot.copied is not None:
        snapshot.copied.synchronize()
    try:
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
        # Leftovers of a killed save: the lock on the run ensures that no other process is writing one.
        checksummed.remove_leftovers(folder, "step-*")
        with checksummed.FolderWriter(target) as writer:
            for name, tensors in snapshot.tensors.items():
                # At most one entry: safetensors writes several in an order that differs between processes.
                metadata = {"shared": dump_json(snapshot.tied)} if name == WEIGHTS and snapshot.tied else None
                safetensors.torch.save_file(tensors, writer.path / name, metadata)
                writer.add(name)
            (writer.path / STRUCTURE).write_text(dump_json(snapshot.structure), encoding="utf-8")
            writer.add(STRUCTURE)
            manifest = {"step": snapshot.step, **snapshot.facts}
            writer.commit(manifest, move_existing_to=_quarantine_name(target) if target.exists() else None)
    except (OSError, SafetensorError) as error:
        # safetensors has the number in its message only. The temporary folder is not named.
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        cause = OSError(number, os.strerror(number)) if number else error
        then = f"resume the run: {shell.resume_command(folder.parent)}"
        raise write_failure(cause, f"the checkpoint of step {snapshot.step}", str(folder), then) from error
    return verify(target)


def prune(folder: Path, best_step: int, keep_last: int | None, keep_every: int | None) -> None:
    """Remove checkpoints that are no longer needed, once the newest one has been verified.

    Args:
        best_step: the step of the best checkpoint, which is kept.
        keep_last: number of newest checkpoints to keep; None keeps all.
        keep_every: multiples of this number of steps are kept; None keeps none for that reason.
    """
    checkpoints = list(checkpoints_by_step(folder).items())
    for step, path in checkpoints[:-keep_last] if keep_last else []:
        if step != best_step and not (keep_every and step % keep_every == 0):
            # Renamed first: a removal that is interrupted leaves nothing that looks like a checkpoint.
            renamed = path.rename(temporary_sibling(path))
            remove_tree(renamed, ignore_errors=True)


def verify(path: Path) -> Checkpoint:
    """Read every byte of a checkpoint and compare it with the manifest.

    Raises:
        CheckpointError: a file is missing, truncated or altered.
    """
    manifest, damage = inspect(path)
    if manifest is None or damage:
        raise damage[0]
    return Checkpoint(path, manifest)


def inspect(path: Path) -> tuple[dict[str, Any] | None, list[CheckpointError]]:
    """Read every byte of a checkpoint.

    Returns:
        The manifest, None if it is missing or damaged, and an error for each damaged file.
    """
    manifest = checksummed.read_manifest(path)
    problem = None if manifest is None else manifest_problem(path, manifest)
    if problem is not None:
        return None, [damaged(path, checksummed.Damage(MANIFEST, problem))]
    damage = [damaged(path, found) for found in checksummed.find_damage(path)]
    if manifest is not None and not damage:
        for name in manifest["files"].keys() - {STRUCTURE}:
            try:
                with Checkpoint(path, manifest).explains_errors_of(name):
                    read_header(path / name)
            except CheckpointError as error:
                damage.append(error)
    return manifest, damage


def newest(folder: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """Find the newest intact checkpoint. Nothing is changed.

    Returns:
        The checkpoint and an error for each newer one, which is damaged; (None, []) if there are no checkpoints.

    Raises:
        CheckpointError: there are checkpoints and all are damaged.
    """
    damaged: list[CheckpointError] = []
    for path in reversed(checkpoints_by_step(folder).values()):
        try:
            return verify(path), damaged
        except CheckpointError as error:
            damaged.append(error)
    if damaged:
        more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
        raise CheckpointError(
            f"none of the {len(damaged):,} checkpoints can be used: "
            + "; ".join(error.found for error in damaged[:SHOWN])
            + more,
            where=str(folder),
            hint="restore the folder from a copy; to start over, choose another run directory",
        )
    return None, []


def at_step(folder: Path, step: int) -> Checkpoint:
    """Verify and return the checkpoint of a step.

    Raises:
        CheckpointError: it does not exist or is damaged.
    """
    path = checkpoint_folder(folder, step)
    if not path.is_dir():
        steps = ", ".join(map(str, checkpoints_by_step(folder))) or "none"
        raise CheckpointError(
            f"there is no checkpoint of step {step}", where=str(folder), hint=f"existing checkpoints: {steps}"
        )
    return verify(path)


def quarantine(folder: Path, newest_step: int) -> list[Path]:
    """Rename the damaged checkpoints after the newest intact one, so that `prune` does not count them.

    Returns:
        The new paths, newest first.
    """
    damaged = [path for step, path in reversed(checkpoints_by_step(folder).items()) if step > newest_step]
    return [path.rename(_quarantine_name(path)) for path in damaged]


def quarantined(folder: Path) -> list[Path]:
    """List the checkpoints that `quarantine` or a later save at the same step renamed."""
    return sorted(folder.glob("step-*.replaced-*"))


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def _quarantine_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.replaced-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())
