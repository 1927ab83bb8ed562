"""Write safetensors files one tensor at a time, so that a model is never copied as a whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from nanolm.training.checkpoints.header import TensorInfo, file_order, format_header


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Write a new file and flush it to disk.

    Args:
        tensors: by name; they may be views that are not contiguous.
        dtype: of floating-point tensors; others, such as the counts of an n-gram model, keep theirs.

    Raises:
        OSError: the file exists or cannot be written.
    """
    header = {
        name: TensorInfo(tuple(tensor.shape), dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }
    with path.open("xb") as file:
        # transformers used to require the format.
        file.write(format_header(header, {"format": "pt"}))
        for name in file_order(header):
            file.write(tensor_bytes(tensors[name], header[name].dtype))
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    """Return the bytes of a tensor, converted to a dtype; they are copied only where that is needed."""
    elements = tensor.detach().to(dtype).contiguous().reshape(-1)
    return elements.view(torch.uint8).numpy().data
