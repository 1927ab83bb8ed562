"""Deterministic algorithms on a GPU, on which exact resume depends."""

from __future__ import annotations

import os

import torch


def set_determinism(is_deterministic: bool, device: torch.device) -> None:
    """Choose deterministic kernels or the fastest ones; must be called before the first kernel of a run.

    On a CPU every kernel that nanolm uses is deterministic, and nothing is set. On a GPU several backward passes
    (attention, embedding, index_add) add atomically, in an order that differs from run to run, unless PyTorch is told
    otherwise (https://pytorch.org/docs/stable/notes/randomness.html).
    """
    if device.type != "cuda":
        return
    # cuBLAS reads it when its first handle is created, which may be that of a later run of this process.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(is_deterministic)
    # nanolm reads no uninitialized memory, and filling it takes one kernel per tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def is_deterministic(setting: bool, device: torch.device) -> bool:
    """Return whether a run is reproducible bit for bit on this device with `trainer.deterministic=setting`."""
    return device.type == "cpu" or (device.type == "cuda" and setting)
