"""Nested state as JSON with its tensors in a flat dict, so that loading it executes nothing."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

import torch

from nanolm.training.distributed.parallel import is_sharded

# The state of an optimizer has six levels.
MAX_DEPTH = 40


def cpu_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy on the CPU that shares no memory with the original.

    A GPU makes the copy after its earlier and before its later work, and the host does not wait for it: the copy must
    not be read before the event of `record_copies`.
    """
    tensor = tensor.detach()
    if not tensor.is_cuda:
        return tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    # Pinned memory, which a GPU can write alone. PyTorch keeps it for the next checkpoint.
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def record_copies() -> torch.cuda.Event | None:
    """Return an event of the current GPU after which all results of `cpu_copy` can be read; None without a GPU."""
    if not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def flatten(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split nested dicts, lists and tuples into their structure and their tensors.

    Returns:
        The structure, which JSON can represent, and CPU copies of the tensors by a running number.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = cpu_copy(node)
            return {"tensor": name}
        if isinstance(node, dict):
            return {"dict": [[key, walk(value)] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            return {type(node).__name__: [walk(item) for item in node]}
        assert node is None or isinstance(node, bool | int | float | str), f"{type(node)} in a checkpoint"
        if isinstance(node, float) and not math.isfinite(node):
            return {"float": repr(node)}  # JSON has no such numbers
        return {"value": node}

    return walk(state), tensors


def parse_structure(text: bytes) -> Any:
    """Parse a structure that was saved as JSON.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unflatten(structure: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Invert `flatten`.

    Raises:
        ValueError: the structure is not a result of `flatten`, is nested more than MAX_DEPTH levels deep, or does not
            name each tensor once.
    """
    unused = dict(tensors)

    def walk(node: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        kind, content = next(iter(node.items())) if isinstance(node, dict) and len(node) == 1 else (None, None)
        if kind == "tensor" and isinstance(content, str) and content in unused:
            return unused.pop(content)
        if kind == "dict" and isinstance(content, list):
            pairs = [pair for pair in content if isinstance(pair, list) and len(pair) == 2]
            table = {key: walk(value, depth + 1) for key, value in pairs if type(key) in (str, int)}
            if len(table) == len(content):
                return table
        elif kind in ("list", "tuple") and isinstance(content, list):
            items = [walk(item, depth + 1) for item in content]
            return items if kind == "list" else tuple(items)
        elif kind == "float" and content in ("inf", "-inf", "nan"):
            return float(content)
        elif kind == "value" and isinstance(content, bool | int | float | str | None):
            return content
        raise ValueError(f"{reprlib.repr(node)} is not a value of a saved state")

    state = walk(structure, 0)
    if unused:
        raise ValueError(f"it does not name the tensor {min(unused)[:100]!r}")
    return state


def storage_key(name: str, tensor: torch.Tensor) -> Any:
    """Return a key that tied tensors have in common."""
    if not tensor.numel() or tensor.is_meta or is_sharded(tensor):
        return name
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
