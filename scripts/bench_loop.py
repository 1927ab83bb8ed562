"""Measure the overhead of the training loop and of saving, as ratios of interleaved runs in one process.

Absolute times mean little on a shared machine; each row has the median, minimum and maximum over pairs.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from nanolm.compose import compose_command
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import TRAIN
from nanolm.training.optimizers import build as optimizers
from nanolm.training.trainer import train

PAIRS = 7
Row = tuple[str, str, list[float]]


def interleave(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> list[tuple[float, float]]:
    """Return the seconds of each pair of runs, after a warm-up pair."""
    seconds = []
    for pair in range(pairs + 1):
        # Alternate the order, so that drift of the machine favors neither.
        a, b = (ours(), theirs()) if pair % 2 else (theirs(), ours())[::-1]
        if pair:
            seconds.append((a, b))
    return seconds


def ratios(seconds: list[tuple[float, float]]) -> list[float]:
    """Divide the first of each pair by the second."""
    return [a / b for a, b in seconds]


def measure_loop(steps: int, pairs: int) -> list[Row]:
    """Compare nanolm's loop with a minimal loop of the same optimizer steps: bigram, context 8, batch 32, CPU."""
    base_overrides = [
        "model=bigram", "size.context_length=8", "trainer.batch_size=32", f"trainer.max_steps={steps}",
        f"trainer.eval_every={steps}", f"trainer.save_every={steps}", "trainer.sample_tokens=0", "trainer.device=cpu",
    ]  # fmt: skip
    rows = []
    for logger in ("none", "wandb"):
        config = compose_command([*base_overrides, f"logger={logger}"]).config

        def ours(config=config) -> float:  # type: ignore[no-untyped-def]
            """Return the seconds of the loop, with the progress bar, metric rows and the logger, without evaluation."""
            screen = io.StringIO()
            with tempfile.TemporaryDirectory() as folder:
                run = RunDirectory(folder)
                train(config, run, show_bar=True, bar_file=screen)
                seconds = [row.seconds for row in run.read_metrics(TRAIN)]
            return seconds[-1]

        corpus = corpora.load(config.dataset)
        tokenizer = token_cache.fit_tokenizer(corpus, config)
        data = torch.from_numpy(token_cache.tokenize(corpus, tokenizer, config)["train"].tokens[:].astype("int64"))

        def minimal(is_vectorized: bool, config=config, data=data, vocab_size=tokenizer.vocab_size) -> float:  # type: ignore[no-untyped-def]
            model = nn.Embedding(vocab_size, vocab_size)
            optimizer = optimizers.build(config.optimizer, model)
            offsets = torch.arange(9)
            began = time.perf_counter()
            for _ in range(steps):
                starts = torch.randint(len(data) - 8, (32,))
                if is_vectorized:
                    window = data[starts[:, None] + offsets]
                    inputs, targets = window[:, :-1], window[:, 1:]
                else:
                    inputs = torch.stack([data[i : i + 8] for i in starts])
                    targets = torch.stack([data[i + 1 : i + 9] for i in starts])
                loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            return time.perf_counter() - began

        name = f"loop, bigram 8 x 32, bar, logger={logger}"
        for is_vectorized, how in ((True, "indexed at once"), (False, "stacked slices")):
            seconds = interleave(
                ours, lambda is_vectorized=is_vectorized, minimal=minimal: minimal(is_vectorized), pairs
            )  # type: ignore[misc]
            rows.append((name, f"minimal loop, batches {how}", ratios(seconds)))
    return rows


def measure_saving(pairs: int) -> list[Row]:
    """Compare the loop with one save per minute to the loop without: 10.7M parameters, AdamW, 128 MB per checkpoint.

    Saves are more frequent than that, each after the end of the previous one; the time that a save adds, including
    checksums and verification, is divided by a minute.
    """
    steps, every = 45, 15
    base_overrides = [
        "model=gpt", "size.n_layers=6", "size.n_heads=6", "size.d_model=384", "size.context_length=64",
        "trainer.batch_size=2", f"trainer.max_steps={steps}", f"trainer.eval_every={steps}", "trainer.log_every=1",
        "trainer.sample_tokens=0", "trainer.device=cpu", "dataset.val_fraction=0.01", "logger=none",
    ]  # fmt: skip

    def loop(save_every: int, in_background: bool) -> float:
        """Return the seconds up to the last metric row, before the final evaluation and save."""
        overrides = [f"trainer.save_every={save_every}", f"trainer.save_in_background={in_background}"]
        with tempfile.TemporaryDirectory() as folder:
            run = RunDirectory(folder)
            train(compose_command([*base_overrides, *overrides]).config, run, show_bar=False)
            return [row.seconds for row in run.read_metrics(TRAIN)][-1]

    saves = (steps - 1) // every
    rows = []
    for in_background, how in ((True, "background"), (False, "foreground")):
        seconds = interleave(lambda side=in_background: loop(every, side), lambda: loop(steps, True), pairs)  # type: ignore[misc]
        per_minute = [1 + (a - b) / saves / 60 for a, b in seconds]
        rows.append((f"loop, 10.7M parameters, a save per minute in the {how}", "loop without saves", per_minute))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--only", choices=("loop", "saving"), help="one of the measurements (both)")
    options = parser.parse_args()
    table = Table(title="ratios of seconds", title_justify="left")
    table.add_column("nanolm")
    table.add_column("against")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right")
    rows = measure_loop(options.steps, options.pairs) if options.only != "saving" else []
    rows += measure_saving(options.pairs) if options.only != "loop" else []
    for ours, theirs, found in rows:
        cells = (f"{value:.3f}" for value in (statistics.median(found), min(found), max(found)))
        table.add_row(ours, theirs, *cells)
    Console(width=max(Console().width, 120)).print(table)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.pairs} pairs of {options.steps} steps"
    )


if __name__ == "__main__":
    main()
