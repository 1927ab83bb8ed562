"""Headers of safetensors files: written, and read and checked before any tensor is loaded."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanolm.checksummed import is_size
from nanolm.json_text import dump_json
from nanolm.untrusted import open_inside

# A tensor takes about 100 bytes. The library itself accepts 100 MB, which take a gigabyte of memory when parsed.
MAX_BYTES = 16_000_000

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor in a file, with the names that they have in torch."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def file_order(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return the names of tensors in the order of their bytes: wider types first, so that every tensor is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))


def format_header(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the first bytes of a safetensors file, as the library writes them; the tensors follow in `file_order`.

    Args:
        metadata: texts of the file; None leaves the entry out.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in file_order(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    content = dump_json(entries, separators=(",", ":"), ensure_ascii=False).encode()
    content += b" " * (-len(content) % 8)
    return struct.pack("<Q", len(content)) + content


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the header of a safetensors file.

    Returns:
        The tensors by name, whose bytes fill the rest of the file without gaps and overlaps.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is a link out of its folder.
        ValueError: the header is not valid, or does not match the size of the file.
    """
    with open_inside(path, path.parent) as file:
        return {name: tensor for name, (tensor, _) in read_layout(file).items()}


def read_layout(file: io.BufferedReader) -> dict[str, tuple[TensorInfo, int]]:
    """Read the header of an open safetensors file, as `read_header` does.

    Returns:
        Each tensor by name, with the number of its first byte in the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read_header`.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(n_bytes - 8, MAX_BYTES):
        raise ValueError(f"it gives itself {length:,} bytes, in a file of {n_bytes:,}; at most {MAX_BYTES:,}")
    content = file.read(length)
    try:
        entries = json.loads(content.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(entries, dict):
        raise ValueError("it is not a JSON object")
    entries.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in entries.items():
        tensor, span = _parse_entry(name, entry)
        tensors[name] = (tensor, 8 + length + span[0])
        spans.append((*span, name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end:
            raise ValueError(
                f"the tensor {name[:100]!r} begins at byte {first:,}, and the one before it ends at {end:,}"
            )
        end = last
    if end != n_bytes - 8 - length:
        raise ValueError(f"its tensors have {end:,} bytes, and the file has {n_bytes - 8 - length:,}")
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("it has a name twice")
    return table


def _parse_entry(name: str, entry: Any) -> tuple[TensorInfo, tuple[int, int]]:
    """Return shape and dtype of a tensor, and its first byte and the one after its last."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry {name[:100]!r} is not a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"the tensor {name[:100]!r} has the unknown dtype {str(dtype)[:20]!r}")
    # Empty tensors have strides, too, which must not overflow.
    if not _is_list_of_sizes(shape) or math.prod(filter(None, shape)) >= 2**60:
        raise ValueError(f"the tensor {name[:100]!r} has the shape {str(shape)[:60]}")
    n_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if not _is_list_of_sizes(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != n_bytes:
        raise ValueError(
            f"the tensor {name[:100]!r} of {n_bytes:,} bytes is said to be in the bytes {str(offsets)[:60]}"
        )
    return TensorInfo(tuple(shape), DTYPES[dtype]), (offsets[0], offsets[1])


def _is_list_of_sizes(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 64 and all(map(is_size, value))
