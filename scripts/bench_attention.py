"""Compare attention backends by mask and length: forward and backward time, as ratios of interleaved runs.

Absolute times mean little on a shared machine; each ratio is a median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nanolm.config.mask import (
    BandedCausalConfig,
    BandedConfig,
    BlockLocalConfig,
    CausalConfig,
    MaskConfig,
    NoMaskConfig,
    PrefixConfig,
    StridedConfig,
)
from nanolm.config.trainer import AttentionBackend
from nanolm.model import masks
from nanolm.model.attention_backends import BACKENDS, AttentionContext, local_neighborhood
from nanolm.model.backend_choice import choose_backend
from nanolm.training.allocator import keep_freed_memory

HEADS, WIDTH = 4, 32
WINDOW = 64
# Tokens per batch, at every length.
TOKENS = 2048
MASKS: tuple[MaskConfig, ...] = (
    CausalConfig(),
    NoMaskConfig(),
    PrefixConfig(prefix_length=16),
    StridedConfig(stride=8),
    BandedConfig(window=WINDOW),
    BandedCausalConfig(window=16),
    BandedCausalConfig(window=WINDOW),
    BlockLocalConfig(block_size=WINDOW),
)
EXACT = (AttentionBackend.dense, AttentionBackend.sdpa, AttentionBackend.blocked)


def step_of(
    mask: MaskConfig, length: int, backend: AttentionBackend, batch: int, device: torch.device
) -> Callable[[], float]:
    """Return a function that runs attention forward and backward, and returns the seconds."""
    mask_TxT = None if isinstance(mask, CausalConfig) else masks.dense_mask(mask, length).to(device)
    qkv = [torch.randn(batch, HEADS, length, WIDTH, device=device, requires_grad=True) for _ in range(3)]
    ones = torch.ones_like(qkv[0])

    def step() -> float:
        began = time.perf_counter()
        y = BACKENDS[backend](AttentionContext(mask, lambda: mask_TxT, 0, length, None, None, device))(*qkv, 0.0)
        torch.autograd.backward(y, ones)
        if device.type == "cuda":
            torch.cuda.synchronize()
        for x in qkv:
            x.grad = None
        return time.perf_counter() - began

    return step


def interleave(steps: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Return the seconds of each function in each round, after a warm-up round."""
    for step in steps:
        step()
    found: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        # Rotate the order, so that drift of the machine favors none.
        for index in range(len(steps)):
            index = (index + number) % len(steps)
            found[index].append(steps[index]())
    return found


def median_ratio(seconds: list[float], reference: list[float]) -> float:
    """Return the median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def measure_window(lengths: list[int], rounds: int, device: torch.device) -> Table:
    """Compare blocked attention with a dense mask and with full causal attention, by length."""
    table = Table(box=SIMPLE_HEAD, title=f"banded_causal, window {WINDOW}, head width {WIDTH}", title_justify="left")
    for name in ("T", "sdpa, dense mask / blocked", "full causal / blocked", "time per token / at the first T"):
        table.add_column(name, justify="right")
    mask = BandedCausalConfig(window=WINDOW)
    first = step_of(mask, lengths[0], AttentionBackend.blocked, 1, device)
    for length in lengths:
        blocked, dense, causal, base = interleave(
            [
                step_of(mask, length, AttentionBackend.blocked, 1, device),
                step_of(mask, length, AttentionBackend.sdpa, 1, device),
                step_of(CausalConfig(), length, AttentionBackend.sdpa, 1, device),
                first,
            ],
            rounds,
        )
        growth = statistics.median(blocked) / statistics.median(base) * lengths[0] / length
        table.add_row(
            f"{length:,}",
            f"{median_ratio(dense, blocked):.1f}",
            f"{median_ratio(causal, blocked):.1f}",
            f"{growth:.2f}",
        )
    return table


def measure_choice(lengths: list[int], rounds: int, device: torch.device) -> Table:
    """Compare each backend with the chosen one, by mask and length."""
    table = Table(box=SIMPLE_HEAD, title="time of each backend / time of the chosen one", title_justify="left")
    table.add_column("mask")
    table.add_column("T", justify="right")
    table.add_column("chosen")
    for backend in EXACT:
        table.add_column(backend.name, justify="right")
    for mask in MASKS:
        for length in lengths:
            chosen = choose_backend(mask, length, AttentionBackend.auto)
            backends = [
                backend for backend in EXACT if backend is not AttentionBackend.blocked or local_neighborhood(mask)
            ]
            steps = [step_of(mask, length, backend, max(1, TOKENS // length), device) for backend in backends]
            seconds = dict(zip(backends, interleave(steps, rounds), strict=True))
            cells = (
                f"{median_ratio(seconds[backend], seconds[chosen]):.2f}" if backend in seconds else ""
                for backend in EXACT
            )
            table.add_row(masks.describe_mask(mask), f"{length:,}", chosen.name, *cells)
        table.add_section()
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lengths", type=int, nargs="+", help="context lengths of both tables")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    keep_freed_memory()  # as training does
    console = Console(width=max(Console().width, 100))
    console.print(measure_window(options.lengths or [1024, 2048, 4096, 8192], options.rounds, device))
    console.print(measure_choice(options.lengths or [64, 128, 256, 512, 1024, 2048], options.rounds, device))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, {options.rounds} rounds")


if __name__ == "__main__":
    main()
