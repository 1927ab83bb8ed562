"""Measure optimizer steps of models, optimizers and precisions, as ratios of interleaved runs in one process.

The shapes are those of experiment=nanogpt_cpu: 4 layers, 4 heads, width 128, context 64, batches of 12. One thread, by
CPU time, so that other processes of the machine count little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import torch
from bench_loop import interleave, ratios
from rich.console import Console
from rich.table import Table

from nanolm.compose import compose_command
from nanolm.model.build import build
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.cpu_bf16 import has_bf16_instructions
from nanolm.training.gating import NonFiniteFlag
from nanolm.training.optimizers import build as optimizers
from nanolm.training.precision import NumberFormat
from nanolm.training.step import MicroBatch, update

CPU = torch.device("cpu")
VOCAB_SIZE, BATCH_SIZE, CONTEXT = 65, 12, 64
SHAPES = (
    "size=tiny", "size.n_layers=4", "size.n_heads=4", "size.d_model=128", f"size.context_length={CONTEXT}",
    "model.dropout=0", "logger=none", "trainer.device=cpu",
)  # fmt: skip
FAST = ("trainer.precision=bf16", "trainer.compile=true")

# Untimed first steps, in which optimizers make their state.
WARMUP = 3


class Row(NamedTuple):
    """Two command lines to compare, without SHAPES."""

    name: str
    against: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


GPT = ("model=gpt", "optimizer=adamw")
# Of experiment=shakespeare_cpu, whose optimizer has settings that AdamW lacks.
RECIPE = ("model=gpt", "model.activation=swiglu", "model.embedding_convolution=4", "model.sublayer_convolution=4")
ROWS = {
    "model": Row("model=gpt", "model=gpt2", GPT, ("model=gpt2", "optimizer=adamw")),
    "muon": Row("optimizer=muon", "optimizer=adamw", ("model=gpt", "optimizer=muon"), GPT),
    "recipe": Row(
        "experiment=shakespeare_cpu (NorMuon)",
        "its model with AdamW",
        (*RECIPE, "optimizer=muon", "optimizer.normuon_beta2=0.95"),
        (*RECIPE, "optimizer=adamw"),
    ),
    "bf16": Row("bf16, compiled", "fp32, eager", (*GPT, *FAST), GPT),
}


def stepper(overrides: tuple[str, ...], steps: int) -> Callable[[], float]:
    """Build a model and its optimizer, and return a function of some steps, which returns their seconds of CPU time."""
    precision = () if "trainer.precision=bf16" in overrides else ("trainer.precision=fp32",)
    config = compose_command([*overrides, *precision, *SHAPES]).config
    torch.manual_seed(0)
    model = build(config, VOCAB_SIZE)
    optimizer = optimizers.build(config.optimizer, model)
    number_format, flag = NumberFormat(config.trainer.precision, CPU), NonFiniteFlag(CPU)
    forward = torch.compile(model) if config.trainer.compile else model
    windows = torch.randint(VOCAB_SIZE, (8, BATCH_SIZE, CONTEXT + 1))
    batches = cycle([MicroBatch(window[:, :-1], window[:, 1:]) for window in windows])
    n_scored = BATCH_SIZE * CONTEXT

    def run(steps: int = steps) -> float:
        began = time.process_time()
        for _ in range(steps):
            update(forward, optimizer, [next(batches)], number_format, 1.0, n_scored=n_scored, flag=flag)
        return time.process_time() - began

    run(WARMUP)
    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5, help="steps of each run of a pair (%(default)s)")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs (%(default)s)")
    parser.add_argument("--only", nargs="*", choices=ROWS, help="rows to measure (all that this processor supports)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as training does
    table = Table(title="ratios of CPU time per step", title_justify="left")
    table.add_column("nanolm")
    table.add_column("against")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right")
    names = options.only or [name for name in ROWS if name != "bf16" or has_bf16_instructions()]
    for name in names:
        row = ROWS[name]
        ours, theirs = (stepper(overrides, options.steps) for overrides in (row.ours, row.theirs))
        found = ratios(interleave(ours, theirs, options.pairs))
        table.add_row(row.name, row.against, *(f"{f(found):.2f}" for f in (statistics.median, min, max)))
    Console(width=max(Console().width, 100)).print(table)
    if "bf16" not in names and not options.only:
        print("bf16, compiled: left out, because this processor has no bf16 instructions (--only bf16 measures it)")
    print(f"torch {torch.__version__}, 1 thread, {options.pairs} pairs of {options.steps} steps")


if __name__ == "__main__":
    main()
