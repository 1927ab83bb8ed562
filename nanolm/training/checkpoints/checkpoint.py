"""A verified checkpoint: load its weights, averages and state."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from nanolm import checksummed
from nanolm.errors import CheckpointError, NanolmError
from nanolm.model.build import FittedModel
from nanolm.model.lora import adapters, trained_parameters
from nanolm.model.ngram_mix import TABLES
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints.base import require_base
from nanolm.training.checkpoints.header import TensorInfo, read_header
from nanolm.training.checkpoints.manifest import AVERAGES, STRUCTURE, TENSORS, WEIGHTS
from nanolm.training.checkpoints.serialization import parse_structure, storage_key, unflatten
from nanolm.untrusted import read_inside

# Adam's state has 200 bytes per weight matrix.
MAX_STRUCTURE_BYTES = 16_000_000


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
            raise damaged(self.path, checksummed.Damage(name, f"is damaged: {_reason(error)}")) from error

    def _require_same(self, path: Path, expected: Mapping[str, torch.Tensor]) -> None:
        """Refuse a file with other tensors than a model has, of which tied ones are stored once."""
        with self.explains_errors_of(path.name):
            found = read_header(path)
        stored = {storage_key(key, expected[key]) for key in found if key in expected}
        problems = [f"it has the unknown tensor {key[:100]}" for key in found if key not in expected]
        problems += [
            f"{key} is {_describe(found[key])}, and {_describe(tensor)} in the model"
            for key, tensor in expected.items()
            # The size of a table of counts, which depends on the text, is checked when it is loaded.
            if key in found
            and key not in TABLES
            and (found[key].shape, found[key].dtype) != (tuple(tensor.shape), tensor.dtype)
        ]
        problems += [f"it has no {key}" for key, tensor in expected.items() if storage_key(key, tensor) not in stored]
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


def damaged(path: Path, found: checksummed.Damage) -> CheckpointError:
    return CheckpointError(
        f"{path.name}: {found}",
        where=str(path / found.name),
        hint="use another checkpoint, or restore the file from a copy",
    )


def _first_mismatch(error: Exception) -> str:
    """Return the first of the mismatches that PyTorch lists, and how many more there are."""
    first, *mismatches = (line.strip() for line in str(error).splitlines() if line.strip())
    return _first_of([mismatch.rstrip(".") for mismatch in mismatches] or [first])


def _first_of(problems: list[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _describe(tensor: torch.Tensor | TensorInfo) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {list(tensor.shape)}"


def _reason(error: Exception) -> str:
    return str((isinstance(error, OSError) and error.strerror) or error)
