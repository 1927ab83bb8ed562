"""What a run measures of itself besides its loss: norms by part, memory at its most, and how busy the device is."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from pathlib import Path

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.model import count
from nanolm.model.shapes import has_formula
from nanolm.training.distributed.parallel import is_sharded, local_shards
from nanolm.training.distributed.ranks import Ranks

# Dense matrix products a second, in FLOPs, by the model of the GPU and the number format: NVIDIA's data sheets, without
# sparsity and with fp32 accumulation. A model is words of the device's name; the one with most words counts.
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

OTHER_EDITIONS = {"D", "Laptop", "Max", "MIG", "SUPER", "Ti"}


# Where Linux says how much memory this process has.
STATUS = Path("/proc/self/status")


def training_flops_per_token(config: Config, vocab_size: int) -> int | None:
    """FLOPs of a training step for each token, by formula (model/count.py); None of a model that has none."""
    if not has_formula(config):
        return None
    return count.training_flops(count.total(count.flops_per_token(config, vocab_size)))


def peak_flops(device: torch.device, number_format: str, given: float | None) -> float | None:
    """What one device can do in a second: the user's own figure, else that of its data sheet, else None.

    Args:
        number_format: the name of a precision.
        given: trainer.peak_flops.
    """
    if given is not None or device.type != "cuda":
        return given
    name = match_gpu(torch.cuda.get_device_name(device))
    return None if name is None else PEAKS[name].get(number_format)


def match_gpu(device_name: str) -> str | None:
    """The entry of PEAKS for a device, by whole words of its name ("NVIDIA H100 80GB HBM3" is H100); None if unknown.

    Other editions of a card (Laptop, Max-Q, Ti, a part of one by MIG) have other peaks, and are unknown.
    """
    words = re.split(r"[\s_-]+", device_name)
    if OTHER_EDITIONS & set(words):
        return None
    fitting = [model for model in PEAKS if _is_part(model.split(), words)]
    return max(fitting, key=lambda model: len(model.split()), default=None)


def _is_part(some: list[str], words: list[str]) -> bool:
    return any(words[at : at + len(some)] == some for at in range(len(words)))


def product_size(device: torch.device) -> tuple[int, int]:
    """The size of matrices whose products measure a device, and how many products are timed together.

    A GPU takes about 10 us to launch a product, and 2 us for one of size 1024: its products are larger.
    """
    return (8192, 10) if device.type == "cuda" else (1024, 1)


def measure_peak_flops(
    device: torch.device, dtype: torch.dtype | None, size: int | None = None, seconds: float = 0.3
) -> float:
    """Measure the FLOPs per second of matrix products.

    Args:
        size: of the square matrices; None takes that of `product_size`.
        seconds: how long to measure.
    """
    own_size, n_products = product_size(device)
    size = size or own_size
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = a @ b
    best, began = math.inf, time.perf_counter()
    while best == math.inf or time.perf_counter() - began < seconds:
        _wait(device)
        before = time.perf_counter()
        for _ in range(n_products):
            torch.mm(a, b, out=out)
        _wait(device)
        best = min(best, (time.perf_counter() - before) / n_products)
    return 2 * size**3 / best


def utilisation(
    tokens_per_second: float | None, flops_per_token: int | None, peak: float | None, n_devices: int
) -> float | None:
    """Model FLOPs utilisation (Chowdhery et al. 2022, appendix B), a fraction; None where a part of it is not known."""
    if tokens_per_second is None or flops_per_token is None or peak is None:
        return None
    return tokens_per_second * flops_per_token / (peak * n_devices)


def reset_peak_memory(device: torch.device) -> None:
    """Forgets how much memory was in use at most before now, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        # Linux: 5 puts the highest resident set back to what it is now.
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int | None:
    """Bytes in use at most: of tensors on a GPU; of the whole process elsewhere, in which other runs may have been.

    None where the system does not say: Windows has neither /proc nor `resource`.
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
    """The 2-norm of the weights and of the gradients of each part of the model (`part_of`); all ranks must ask.

    Gradients are as they were applied, behind clipping.
    """
    parameters = dict(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    any_sharded = any(map(is_sharded, parameters.values()))
    found: dict[str, dict[str, float]] = {}
    for kind, tensors in (("weight_norms", parameters), ("grad_norms", gradients)):
        own = local_shards([tensor.detach() for tensor in tensors.values()])
        # Fetched together, so that a GPU is waited for once.
        norms = torch.stack([torch.linalg.vector_norm(part.float()) for part in own]).tolist() if own else []
        squares: dict[str, float] = {}
        for name, norm in zip(tensors, norms, strict=True):
            squares[part_of(name)] = squares.get(part_of(name), 0.0) + norm**2
        found[kind] = {part: math.sqrt(ranks.sum(of) if any_sharded else of) for part, of in squares.items()}
    return found


def part_of(name: str) -> str:
    """The part of a model that a parameter belongs to: blocks.0.attention, token_embedding, head, ..."""
    modules = name.split(".")[:-1] or [name]
    is_in_a_stack = len(modules) > 1 and modules[1].isdigit()
    return ".".join(modules[: 3 if is_in_a_stack else 1])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()
