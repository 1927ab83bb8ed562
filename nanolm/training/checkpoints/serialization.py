"""Nested state as JSON with its tensors in a flat dict, so that loading it executes nothing."""

from __future__ import annotations

import math
from typing import Any

import torch


def cpu_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous copy on the CPU that shares no memory with the original."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


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


def unflatten(structure: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Invert `flatten`."""
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [unflatten(item, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return float(content) if kind == "float" else content
