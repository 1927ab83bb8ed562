"""Compare the training speed with a nanoGPT checkout, as ratios of interleaved runs in one process.

    python scripts/bench_nanogpt.py CHECKOUT

The checkout's model.py is trained by a loop like that of its train.py: batches stacked from slices of a memory map,
AdamW, clipping, and the loss read every ten steps. nanolm trains by `train`, with its progress bar and metric rows.
Both have 4 layers, 4 heads, width 128, context 64, batches of 12, no biases and no dropout.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from bench_loop import interleave, ratios
from nanogpt_checkout import CPU_SETTINGS, CheckoutError, import_model
from rich.console import Console
from rich.table import Table

from nanolm.compose import compose_command
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import TRAIN
from nanolm.training.trainer import train

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = (
    int(CPU_SETTINGS[name]) for name in ("n_layer", "n_head", "n_embd", "block_size", "batch_size")
)

# Untimed first steps, which include compilation.
WARMUP = 10


# Settings of nanolm and of the checkout, and whether the checkout is compiled and in bf16.
ROWS = {
    "plain": ("fp32", "fp32", False),
    "best": ("bf16, compiled", "fp32", False),
    "alike": ("bf16, compiled", "bf16, compiled", True),
}


def theirs(module: ModuleType, data: np.ndarray, vocab_size: int, steps: int, is_fast: bool) -> float:
    """Train the checkout's model and return the seconds of the timed steps."""
    torch.manual_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        settings = module.GPTConfig(
            block_size=CONTEXT,
            vocab_size=vocab_size,
            n_layer=LAYERS,
            n_head=HEADS,
            n_embd=WIDTH,
            dropout=0.0,
            bias=False,
        )
        model = module.GPT(settings)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    forward = torch.compile(model) if is_fast else model
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if is_fast else contextlib.nullcontext()
    began = time.perf_counter()
    for step in range(WARMUP + steps):
        if step == WARMUP:
            began = time.perf_counter()
        starts = torch.randint(len(data) - CONTEXT, (BATCH,))
        inputs = torch.stack([torch.from_numpy(data[i : i + CONTEXT].astype(np.int64)) for i in starts])
        targets = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + CONTEXT].astype(np.int64)) for i in starts])
        with autocast:
            _, loss = forward(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()
    return time.perf_counter() - began


def ours(overrides: list[str], steps: int) -> float:
    """Train nanolm's model and return the seconds of the timed steps."""
    total = WARMUP + steps
    length = [f"trainer.max_steps={total}", f"trainer.eval_every={total}", f"trainer.save_every={total}"]
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(folder)
        train(compose_command([*overrides, *length]).config, run, show_bar=True, bar_file=io.StringIO())
        seconds = {row.step: row.seconds for row in run.read_metrics(TRAIN)}
    return seconds[total] - seconds[WARMUP]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=ROWS, help="rows to measure (all)")
    options = parser.parse_args()
    try:
        module = import_model(options.checkout)
    except CheckoutError as error:
        sys.exit(str(error))
    overrides = [
        "model=nanogpt", "size=tiny", "optimizer=adamw", "model.dropout=0", f"size.context_length={CONTEXT}",
        f"size.n_layers={LAYERS}", f"size.n_heads={HEADS}", f"size.d_model={WIDTH}", f"trainer.batch_size={BATCH}",
        "trainer.sample_tokens=0", "trainer.device=cpu", "logger=none",
    ]  # fmt: skip
    config = compose_command(overrides).config
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    data = token_cache.tokenize(corpus, tokenizer, config)["train"].tokens[:].astype(np.uint16)
    fast = ["trainer.precision=bf16", "trainer.compile=true"]
    table = Table(title="tokens per second, relative to the checkout", title_justify="left")
    for name, justify in (
        ("nanolm", "left"),
        ("nanoGPT", "left"),
        *((n, "right") for n in ("median", "min", "max")),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in options.only or ROWS:
        own, other, is_fast = ROWS[name]
        more = [] if own == "fp32" else fast
        seconds = interleave(
            lambda is_fast=is_fast: theirs(module, data, tokenizer.vocab_size, options.steps, is_fast),  # type: ignore[misc]
            lambda more=more: ours([*overrides, *more], options.steps),  # type: ignore[misc]
            options.pairs,
        )
        found = ratios(seconds)
        table.add_row(own, other, *(f"{f:.2f}" for f in (statistics.median(found), min(found), max(found))))
    Console(width=max(Console().width, 100)).print(table)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.pairs} pairs of {options.steps} steps"
    )


if __name__ == "__main__":
    main()
