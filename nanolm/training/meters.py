"""Measurements of a training run: norms, peak memory, FLOPs utilization."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from pathlib import Path

import torch
from torch import nn

from nanolm.training.distributed.parallel import is_sharded, local_shards
from nanolm.training.distributed.ranks import Ranks

# Peak FLOPs per second of dense matmuls by GPU model and precision, from NVIDIA's data sheets: without sparsity, with
# fp32 accumulation. A GPU matches the key with the most words that are all in its name.
PEAKS: dict[str, dict[str, float]] = {
    "B200": {"bf16": 2250e12, "fp16": 2250e12, "tf32": 1125e12, "fp32": 75e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H100 NVL": {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12},
    "H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12},
    "H200": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H200 NVL": {"bf16": 835e12, "fp16": 835e12, "tf32": 417e12, "fp32": 60e12},
    "GH200": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "A40": {"bf16": 149.7e12, "fp16": 149.7e12, "tf32": 74.8e12, "fp32": 37.4e12},
    "A30": {"bf16": 165e12, "fp16": 165e12, "tf32": 82e12, "fp32": 10.3e12},
    "A10": {"bf16": 125e12, "fp16": 125e12, "tf32": 62.5e12, "fp32": 31.2e12},
    "A10G": {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 31.5e12},
    "L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
    "L40": {"bf16": 181e12, "fp16": 181e12, "tf32": 90.5e12, "fp32": 90.5e12},
    "L4": {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    "RTX 6000 Ada": {"bf16": 364e12, "fp16": 364e12, "tf32": 182e12, "fp32": 91.1e12},
    "RTX A6000": {"bf16": 154.8e12, "fp16": 154.8e12, "tf32": 77.4e12, "fp32": 38.7e12},
    "RTX 5090": {"bf16": 209.5e12, "fp16": 209.5e12, "tf32": 104.8e12, "fp32": 104.8e12},
    "RTX 4090": {"bf16": 165.2e12, "fp16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12},
    "V100": {"fp16": 125e12, "fp32": 15.7e12},
    "T4": {"fp16": 65e12, "fp32": 8.1e12},
}

# Words in the names of other editions of a card, whose peaks differ.
OTHER_EDITIONS = {"D", "Laptop", "Max", "MIG", "SUPER", "Ti"}

# The memory of this process, on Linux.
STATUS = Path("/proc/self/status")


def peak_flops(device: torch.device, number_format: str, given: float | None) -> float | None:
    """Return the peak FLOPs per second of one device: trainer.peak_flops, or that of its data sheet, or None."""
    if given is not None or device.type != "cuda":
        return given
    name = match_gpu(torch.cuda.get_device_name(device))
    return None if name is None else PEAKS[name].get(number_format)


def match_gpu(device_name: str) -> str | None:
    """Return the key of PEAKS for a device name such as "NVIDIA H100 80GB HBM3"; None if it is unknown."""
    words = re.split(r"[\s_-]+", device_name)
    if OTHER_EDITIONS & set(words):
        return None
    matches = [model for model in PEAKS if f" {model} " in f" {' '.join(words)} "]
    return max(matches, key=lambda model: len(model.split()), default=None)


def product_size(device: torch.device) -> tuple[int, int]:
    """Return the size of the matrices that measure a device, and how many matmuls are timed together.

    A GPU takes about 10 us to launch a matmul and 2 us to compute one of size 1024, so its matrices are larger.
    """
    return (8192, 10) if device.type == "cuda" else (1024, 1)


def measure_peak_flops(device: torch.device, dtype: torch.dtype | None) -> float:
    """Measure the FLOPs per second of matmuls for 0.3 s; None is the default dtype."""
    size, n_products = product_size(device)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = a @ b
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < 0.3:
        _wait(device)
        before = time.perf_counter()
        for _ in range(n_products):
            torch.mm(a, b, out=out)
        _wait(device)
        best = min(best, (time.perf_counter() - before) / n_products)
    return 2 * size**3 / best


def utilization(
    tokens_per_second: float | None, flops_per_token: float | None, peak: float | None, n_devices: int
) -> float | None:
    """Return the model FLOPs utilization (Chowdhery et al. 2022, appendix B) as a fraction; None if unknown."""
    if tokens_per_second is None or flops_per_token is None or peak is None:
        return None
    return tokens_per_second * flops_per_token / (peak * n_devices)


def reset_peak_memory(device: torch.device) -> None:
    """Reset peak memory statistics, where the system supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        # Linux: 5 resets the peak resident set size.
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory in bytes: of tensors on a GPU, elsewhere of the whole process, other runs included.

    None if the system does not report it: Windows has neither /proc nor `resource`.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    # Bytes on macOS, kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def norms(model: nn.Module, ranks: Ranks) -> dict[str, dict[str, float]]:
    """Return the L2 norms of weights and gradients by part of the model (`part_of`); all ranks must call it.

    Gradients are measured after clipping.
    """
    parameters = dict(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    any_sharded = any(map(is_sharded, parameters.values()))
    found: dict[str, dict[str, float]] = {}
    for kind, tensors in (("weight_norms", parameters), ("grad_norms", gradients)):
        shards = local_shards([tensor.detach() for tensor in tensors.values()])
        # Stacked, so that there is one synchronization with a GPU.
        norms = torch.stack([torch.linalg.vector_norm(shard.float()) for shard in shards]).tolist() if shards else []
        squares: dict[str, float] = {}
        for name, norm in zip(tensors, norms, strict=True):
            squares[part_of(name)] = squares.get(part_of(name), 0.0) + norm**2
        found[kind] = {
            part: math.sqrt(ranks.sum(square) if any_sharded else square) for part, square in squares.items()
        }
    return found


def part_of(name: str) -> str:
    """Return the part of a model that a parameter belongs to: blocks.0.attention, token_embedding, head, ..."""
    modules = name.split(".")[:-1] or [name]
    is_in_layer = len(modules) > 1 and modules[1].isdigit()
    return ".".join(modules[: 3 if is_in_layer else 1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()
