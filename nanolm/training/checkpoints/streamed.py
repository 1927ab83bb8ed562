"""Write a checkpoint of weights that are read one tensor at a time, so that a large model is never in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from nanolm import checksummed
from nanolm.checksummed import ChecksummedFile
from nanolm.json_text import dump_json
from nanolm.training.checkpoints.files import checkpoint_folder
from nanolm.training.checkpoints.header import TensorInfo, file_order, format_header
from nanolm.training.checkpoints.manifest import LOGS, STRUCTURE, TENSORS, WEIGHTS
from nanolm.training.checkpoints.serialization import flatten

# Values of an fp32 tensor that are converted and written together.
_CHUNK = 1 << 22


def write_weights(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, torch.Tensor]],
    facts: Mapping[str, Any],
) -> None:
    """Write the checkpoint of step 0 of a model that was not trained here: fp32 weights and no other state.

    Its model.safetensors is the file that saving the loaded model would give.

    Args:
        folder: the folder of checkpoints, which is created.
        shapes: of the weights by name.
        tensors: the weights with their names, in the order of the names.
        facts: the entries of the manifest but for the step, its losses and the logs.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    folder.mkdir()
    structure, other = flatten({"scalars": {"step": 0, "best_step": 0}, "optimizer": None, "scaler": None})
    with checksummed.FolderWriter(checkpoint_folder(folder, 0)) as writer:
        file = writer.open(WEIGHTS)
        header = {name: TensorInfo(shape, torch.float32) for name, shape in shapes.items()}
        file.write(format_header(header))
        for expected, (name, tensor) in zip(file_order(header), tensors, strict=True):
            assert (name, tuple(tensor.shape)) == (expected, shapes[expected])
            _write_values(file, tensor)
        file.finish()
        for name, content in (
            (TENSORS, safetensors.torch.save(other)),
            (STRUCTURE, dump_json(structure).encode()),
        ):
            file = writer.open(name)
            file.write(content)
            file.finish()
        empty = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        logs = dict.fromkeys(LOGS, empty)
        writer.commit({"step": 0, "best_step": 0, "val_loss": None, **facts, "logs": logs})


def _write_values(file: ChecksummedFile, tensor: torch.Tensor) -> None:
    values = tensor.reshape(-1) if tensor.is_contiguous() else tensor.contiguous().view(-1)
    for chunk in values.split(_CHUNK):
        file.write(memoryview(chunk.to(torch.float32).numpy()).cast("B"))
