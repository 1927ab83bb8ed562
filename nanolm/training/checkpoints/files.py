"""Checkpoint folders: written atomically, verified by checksum, pruned.

A checkpoint is a folder step-N with model.safetensors, state.safetensors and state.json (all other state, split into
tensors and structure), ema.safetensors if the run averages its weights, and manifest.json (`nanolm.checksummed`). Of a
model with low-rank adapters, model.safetensors has the adapters; all other weights are in `base`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from nanolm import checksummed, shell
from nanolm.checksummed import MANIFEST
from nanolm.errors import CheckpointError, NanolmError, write_failure
from nanolm.files import remove_tree, sync_folder, temporary_sibling
from nanolm.json_text import dump_json
from nanolm.model.build import FittedModel
from nanolm.model.lora import adapters, trained_parameters
from nanolm.run_layout import checkpoint_step, checkpoints_by_step
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints.base import require_base
from nanolm.training.checkpoints.header import TensorInfo, read_header
from nanolm.training.checkpoints.serialization import cpu_copy, flatten, parse_structure, unflatten
from nanolm.training.checkpoints.values import COUNT, FINITE_OR_NULL, SHA256, TABLE, TEXT, require_table
from nanolm.training.distributed.parallel import is_sharded
from nanolm.untrusted import read_inside

WEIGHTS, AVERAGES = "model.safetensors", "ema.safetensors"
TENSORS, STRUCTURE = "state.safetensors", "state.json"
FILES = (WEIGHTS, AVERAGES, TENSORS, STRUCTURE)
LOGS = ("metrics.jsonl", "samples.jsonl")

# Adam's state has 200 bytes per weight matrix.
MAX_STRUCTURE_BYTES = 16_000_000

# Damaged checkpoints that an error lists.
SHOWN = 5

# The entries of a manifest.
FACTS = {
    "step": COUNT,
    "best_step": COUNT,
    "val_loss": FINITE_OR_NULL,
    "settings": TABLE,
    "logs": TABLE,
    "files": TABLE,
    **dict.fromkeys(("identity", "corpus", "tokenizer", "precision"), TEXT),
    "base": SHA256,
    "versions": TABLE,
}
OPTIONAL_FACTS = ("identity", "corpus", "tokenizer", "precision", "base", "versions")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been verified."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done when it was saved."""
        return int(self.manifest["step"])

    @property
    def best_step(self) -> int:
        """Step of the lowest validation loss when it was saved; 0 before the first evaluation."""
        return int(self.manifest["best_step"])

    @property
    def run(self) -> RunDirectory:
        """The run that it belongs to."""
        return RunDirectory(self.path.parent.parent)

    @property
    def base(self) -> str | None:
        """The SHA-256 of the run's frozen weights; None if the checkpoint has all weights."""
        return self.manifest.get("base")

    def load_weights(self, model: nn.Module) -> None:
        """Load the weights into a model.

        Raises:
            CheckpointError: the model has other parameters than the file.
        """
        path, state = self.path / WEIGHTS, model.state_dict(keep_vars=True)
        trained = adapters(model)
        if trained:
            self.load_base(model)
            state = {name: state[name] for name in trained}
        if not isinstance(model, FittedModel):
            # A table of counts has the size of its text, which only loading it shows.
            self._require_same(path, state)
        self._load(model, path, is_whole=not trained)

    def load_base(self, model: nn.Module) -> None:
        """Load all weights of a model except for its adapters: those of a run without adapters, or of the run's base.

        Raises:
            CheckpointError: the model has other parameters, or the base is missing or has changed.
        """
        path = self.path / WEIGHTS
        if (sha256 := self.base) is not None:
            require_base(self.run, sha256)
            path = self.run.base
        trained = adapters(model)
        frozen = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in trained}
        self._require_same(path, frozen)
        self._load(model, path, is_whole=False)

    def _load(self, model: nn.Module, path: Path, is_whole: bool) -> None:
        try:
            safetensors.torch.load_model(model, path, strict=is_whole)
        except (RuntimeError, SafetensorError) as error:
            raise self._misfit(path, _first_mismatch(error)) from error

    def load_state(self) -> Any:
        """Return all other state, as it was given to `take_snapshot`. Its values are not checked.

        Raises:
            CheckpointError: it is damaged.
        """
        with self.explains_errors_of(STRUCTURE):
            structure = parse_structure(read_inside(self.path / STRUCTURE, self.path, MAX_STRUCTURE_BYTES))
            return unflatten(structure, safetensors.torch.load_file(self.path / TENSORS))

    def load_averages(self, model: nn.Module) -> dict[str, torch.Tensor] | None:
        """Return the averaged weights of a model by name; None if the run does not average its weights.

        Raises:
            CheckpointError: the model has other parameters than the file.
        """
        if AVERAGES not in self.manifest["files"]:
            return None
        self._require_same(self.path / AVERAGES, trained_parameters(model))
        return safetensors.torch.load_file(self.path / AVERAGES)

    def weights(self) -> dict[str, TensorInfo]:
        """Return the shape and dtype of each weight, without loading it; tied weights are there once.

        Raises:
            CheckpointError: the file is damaged, or the base is missing or has changed.
        """
        frozen = {} if self.base is None else require_base(self.run, self.base)
        with self.explains_errors_of(WEIGHTS):
            return frozen | read_header(self.path / WEIGHTS)

    @contextlib.contextmanager
    def explains_errors_of(self, name: str) -> Iterator[None]:
        """Translate errors of reading a file of the checkpoint.

        Raises:
            CheckpointError: in place of an OSError or a ValueError.
        """
        try:
            yield
        except NanolmError:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(self.path, checksummed.Damage(name, f"is damaged: {_reason(error)}")) from error

    def _require_same(self, path: Path, expected: Mapping[str, torch.Tensor]) -> None:
        """Refuse a file with other tensors than a model has, of which tied ones are stored once."""
        with self.explains_errors_of(path.name):
            found = read_header(path)
        stored = {_memory(key, expected[key]) for key in found if key in expected}
        problems = [f"it has the unknown tensor {key[:100]}" for key in found if key not in expected]
        problems += [
            f"{key} is {_describe(found[key])}, and {_describe(tensor)} in the model"
            for key, tensor in expected.items()
            if key in found and (found[key].shape, found[key].dtype) != (tuple(tensor.shape), tensor.dtype)
        ]
        problems += [f"it has no {key}" for key, tensor in expected.items() if _memory(key, tensor) not in stored]
        if problems:
            raise self._misfit(path, _first_of(problems))

    def _misfit(self, path: Path, problem: str) -> CheckpointError:
        what = "averaged weights" if path.name == AVERAGES else "weights"
        return CheckpointError(
            f"the {what} do not fit the model: {problem}",
            where=str(path),
            hint="restore config.yaml and tokenizer.json from a copy of the run; if the model code has changed since, "
            "use the nanolm version that the manifest names",
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A copy of the state of a run between two steps, in host memory that later steps do not change.

    Attributes:
        step: optimizer steps done.
        tensors: the tensors of each file by name; tied weights are in it once.
        tied: the other names of tied weights, each with the name that is in the file.
        structure: all other state without its tensors (`flatten`).
        facts: further entries of the manifest (versions, fingerprints, losses).
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    tied: dict[str, str]
    structure: Any
    facts: dict[str, Any]


def take_snapshot(
    step: int,
    weights: Mapping[str, torch.Tensor],
    state: Any,
    facts: dict[str, Any],
    averages: dict[str, torch.Tensor] | None = None,
) -> Snapshot:
    """Copy the state of a run to host memory.

    Args:
        weights: the full state dict of the model, in which tied weights share their memory.
        state: all other state: tensors and plain values in nested dicts, lists and tuples.
        averages: averaged weights by name, if there are any.
    """
    first_names: dict[Any, str] = {}
    untied, tied = {}, {}
    for name, tensor in sorted(weights.items()):
        first_name = first_names.setdefault(_memory(name, tensor), name)
        if first_name == name:
            untied[name] = cpu_copy(tensor)
        else:
            tied[name] = first_name
    structure, other = flatten(state)
    tensors = {WEIGHTS: untied, TENSORS: other}
    if averages is not None:
        tensors[AVERAGES] = {name: cpu_copy(average) for name, average in averages.items()}
    return Snapshot(step, tensors, tied, structure, facts)


def write(folder: Path, snapshot: Snapshot) -> Checkpoint:
    """Write folder/step-N atomically and verify it. Its bytes are a function of the snapshot.

    Raises:
        CheckpointError: the written files do not verify.
        DiskError: the disk is full or fails; older checkpoints are unchanged and nothing else is left.
    """
    target = checkpoint_folder(folder, snapshot.step)
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


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a checkpoint, or None if it is missing or damaged. No other file is read."""
    manifest = checksummed.read_manifest(path)
    return None if manifest is None or _manifest_problem(path, manifest) else manifest


def inspect(path: Path) -> tuple[dict[str, Any] | None, list[CheckpointError]]:
    """Read every byte of a checkpoint.

    Returns:
        The manifest, None if it is missing or damaged, and an error for each damaged file.
    """
    manifest = checksummed.read_manifest(path)
    problem = None if manifest is None else _manifest_problem(path, manifest)
    if problem is not None:
        return None, [_damaged(path, checksummed.Damage(MANIFEST, problem))]
    damage = [_damaged(path, found) for found in checksummed.find_damage(path)]
    if manifest is not None and not damage:
        for name in manifest["files"].keys() - {STRUCTURE}:
            try:
                with Checkpoint(path, manifest).explains_errors_of(name):
                    read_header(path / name)
            except CheckpointError as error:
                damage.append(error)
    return manifest, damage


def _damaged(path: Path, found: checksummed.Damage) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: {found}",
        where=str(path / found.name),
        hint="use another checkpoint, or restore the file from a copy",
    )


def _manifest_problem(path: Path, manifest: dict[str, Any]) -> str | None:
    """Describe what is wrong with the entries of a manifest whose checksum is right; None if nothing is."""
    run = path.parent.parent
    if (path.is_symlink() or path.parent.is_symlink()) and not path.resolve().is_relative_to(run.resolve()):
        return f"is in {path.resolve()}: links out of the run are not followed"
    if manifest.get("step") != checkpoint_step(path.name):
        return "belongs to another step"
    try:
        require_table(manifest, FACTS, optional=OPTIONAL_FACTS)
        require_table(manifest["files"], dict.fromkeys(FILES, TABLE), "files", (AVERAGES,))
        require_table(manifest["logs"], dict.fromkeys(LOGS, TABLE), "logs")
        for name, log in manifest["logs"].items():
            require_table(log, {"bytes": COUNT, "sha256": SHA256}, f"logs.{name}")
        if manifest["best_step"] > manifest["step"]:
            raise ValueError(f"best_step is {manifest['best_step']:,}, after step {manifest['step']:,}")
    except ValueError as error:
        return f"is damaged: {error}"
    return None


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


def _first_mismatch(error: Exception) -> str:
    """Return the first of the mismatches that PyTorch lists, and how many more there are."""
    first, *mismatches = (line.strip() for line in str(error).splitlines() if line.strip())
    return _first_of([mismatch.rstrip(".") for mismatch in mismatches] or [first])


def _first_of(problems: list[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _describe(tensor: torch.Tensor | TensorInfo) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


def _memory(name: str, tensor: torch.Tensor) -> Any:
    """Return a key that tied tensors have in common."""
    if not tensor.numel() or tensor.is_meta or is_sharded(tensor):
        return name
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _reason(error: Exception) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:08d}"


def _quarantine_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.replaced-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())
