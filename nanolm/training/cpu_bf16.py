"""Whether this machine's CPU trains faster in bf16 than in fp32: measured once, and cached for the user."""

from __future__ import annotations

import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nanolm.data.download import cache_folder
from nanolm.files import write_durably
from nanolm.json_text import dump_json, is_finite_number, parse_object

# Below this the rounding of bf16 is not worth its speed.
MIN_SPEEDUP = 1.25

# The feed-forward of size=tiny, on a batch of 12 x 64 tokens; larger products gain more.
N_TOKENS, WIDTH, HIDDEN = 768, 128, 512
REPEATS = 20


def has_bf16_instructions() -> bool:
    """Return whether the processor multiplies bf16 in hardware (AVX512-BF16 or AMX), instead of converting to fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def is_bf16_worthwhile() -> bool:
    """Return whether the processor has bf16 instructions, and the speedup by them is at least MIN_SPEEDUP.

    The speedup is read from the user's cache folder, so that all runs on a machine decide alike. It is measured if
    there is no entry for this processor, number of threads and version of PyTorch.
    """
    return has_bf16_instructions() and cached_speedup(cache_folder() / "bf16_speedup.json") >= MIN_SPEEDUP


def cached_speedup(path: Path) -> float:
    """Read the speedup of this machine from a JSON file, or measure it and add it to the file."""
    key = f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    try:
        entries = parse_object(path.read_bytes())
    except (OSError, ValueError):
        entries = {}
    if is_finite_number(entries.get(key)):
        return float(entries[key])
    entries[key] = round(measure_speedup(), 3)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, dump_json(entries, indent=1).encode())
    except OSError:
        pass  # The next run measures it again.
    return float(entries[key])


def measure_speedup(repeats: int = REPEATS) -> float:
    """Measure a feed-forward, forward and backward: the time in fp32 divided by the time under bf16 autocast."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_TOKENS, WIDTH, generator=generator)
    expansion, projection = (
        torch.randn(shape, generator=generator).requires_grad_() for shape in ((HIDDEN, WIDTH), (WIDTH, HIDDEN))
    )

    def seconds(is_bf16: bool) -> float:
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            y = F.linear(F.relu(F.linear(x, expansion)), projection)
        torch.autograd.grad(y, (expansion, projection), torch.ones_like(y))
        return time.perf_counter() - began

    # The first pair includes the initialization of the kernels.
    pairs = [(seconds(False), seconds(True)) for _ in range(1 + repeats)][1:]
    fp32, bf16 = (min(times) for times in zip(*pairs, strict=True))
    return fp32 / bf16


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"
