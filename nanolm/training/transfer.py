"""Copies of batches to the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return integer arrays of one shape as int64 tensors on a device; the CPU shares their memory.

    A GPU receives them in one transfer, from pinned memory, so that the host does not wait for earlier work of the GPU.
    """
    if device.type == "cpu":
        return tuple(map(torch.from_numpy, arrays))
    return pack(arrays, is_pinned=device.type == "cuda").to(device, non_blocking=True).long().unbind()


def pack(arrays: Sequence[np.ndarray], is_pinned: bool) -> torch.Tensor:
    """Stack integer arrays as int32, which halves the bytes; token ids and document numbers fit."""
    packed = torch.empty((len(arrays), *arrays[0].shape), dtype=torch.int32, pin_memory=is_pinned)
    np.stack(arrays, out=packed.numpy(), casting="unsafe")
    return packed
