"""What attention costs on this machine, by mask, length and path: forward and backward, as ratios of runs in turn.

Absolute times mean little on a shared machine; each figure is the median over pairs.
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
# Tokens of a batch are about the same at every length.
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
    mask: MaskConfig, length: int, path: AttentionBackend, batch: int, device: torch.device
) -> Callable[[], float]:
    """A function that attends forward and backward, and returns the seconds of it."""
    table = None if isinstance(mask, CausalConfig) else masks.dense_mask(mask, length).to(device)
    qkv = [torch.randn(batch, HEADS, length, WIDTH, device=device, requires_grad=True) for _ in range(3)]
    ones = torch.ones_like(qkv[0])

    def step() -> float:
        began = time.perf_counter()
        gathered = BACKENDS[path](AttentionContext(mask, table, 0, length, None, None, device))(*qkv, 0.0)
        torch.autograd.backward(gathered, ones)
        if device.type == "cuda":
            torch.cuda.synchronize()
        for x in qkv:
            x.grad = None
        return time.perf_counter() - began

    return step


def in_turn(steps: list[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Seconds of each, round by round, after one round that does not count."""
    for step in steps:
        step()
    found: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        # Each goes first as often as the others, so that a drift of the machine favours none.
        for index in range(len(steps)):
            index = (index + number) % len(steps)
            found[index].append(steps[index]())
    return found


def ratio(of: list[float], to: list[float]) -> float:
    """The median of the ratios, round by round."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def the_window(lengths: list[int], rounds: int, device: torch.device) -> Table:
    """banded_causal, window 64, in blocks: against a dense mask and full causal attention, and how it grows."""
    table = Table(box=SIMPLE_HEAD, title=f"banded_causal, window {WINDOW}, head width {WIDTH}", title_justify="left")
    for name in ("T", "sdpa, dense mask / blocked", "full causal / blocked", "a token / a token at the first T"):
        table.add_column(name, justify="right")
    mask = BandedCausalConfig(window=WINDOW)
    first = step_of(mask, lengths[0], AttentionBackend.blocked, 1, device)
    for length in lengths:
        blocked, dense, causal, base = in_turn(
            [
                step_of(mask, length, AttentionBackend.blocked, 1, device),
                step_of(mask, length, AttentionBackend.sdpa, 1, device),
                step_of(CausalConfig(), length, AttentionBackend.sdpa, 1, device),
                first,
            ],
            rounds,
        )
        growth = statistics.median(blocked) / statistics.median(base) * lengths[0] / length
        table.add_row(f"{length:,}", f"{ratio(dense, blocked):.1f}", f"{ratio(causal, blocked):.1f}", f"{growth:.2f}")
    return table


def the_choice(lengths: list[int], rounds: int, device: torch.device) -> Table:
    """For every mask and length each path against the one that is chosen."""
    table = Table(box=SIMPLE_HEAD, title="time of each path / time of the chosen one", title_justify="left")
    table.add_column("mask")
    table.add_column("T", justify="right")
    table.add_column("chosen")
    for path in EXACT:
        table.add_column(path.name, justify="right")
    for mask in MASKS:
        for length in lengths:
            chosen = choose_backend(mask, length, AttentionBackend.auto)
            paths = [path for path in EXACT if path is not AttentionBackend.blocked or local_neighborhood(mask)]
            steps = [step_of(mask, length, path, max(1, TOKENS // length), device) for path in paths]
            seconds = dict(zip(paths, in_turn(steps, rounds), strict=True))
            cells = (f"{ratio(seconds[path], seconds[chosen]):.2f}" if path in seconds else "" for path in EXACT)
            table.add_row(masks.describe_mask(mask), f"{length:,}", chosen.name, *cells)
        table.add_section()
    return table


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    keep_freed_memory()  # as training does
    console = Console(width=max(Console().width, 100))
    console.print(the_window([1024, 2048, 4096, 8192], options.rounds, device))
    console.print(the_choice([64, 128, 256, 512, 1024, 2048], options.rounds, device))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}, {options.rounds} rounds")


if __name__ == "__main__":
    main()
