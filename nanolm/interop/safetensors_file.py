"""Write safetensors files one tensor at a time, so that a model is never copied as a whole."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanolm.json_text import dump_json
from nanolm.training.checkpoints.header import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Write a new file and flush it to disk.

    Args:
        tensors: by name; they may be views that are not contiguous.
        dtype: of floating-point tensors; others, such as the counts of an n-gram model, keep theirs.

    Raises:
        OSError: the file exists or cannot be written.
    """
    dtypes = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in tensors.items()}
    # Wider types first, so that every tensor is aligned, as the library does.
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": _NAMES[dtypes[name]],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    content = dump_json(header, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(content)) + content)
        for name in names:
            file.write(tensor_bytes(tensors[name], dtypes[name]))
        file.flush()
        os.fsync(file.fileno())


def tensor_bytes(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    """Return the bytes of a tensor, converted to a dtype; they are copied only where that is needed."""
    elements = tensor.detach().to(dtype).contiguous().reshape(-1)
    return elements.view(torch.uint8).numpy().data
