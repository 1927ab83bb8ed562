"""Run directories with the files that training writes and metrics chosen by a test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanolm.runs.metrics import TRAIN, VAL, MetricsRow
from nanolm.runs.records import encode_row
from nanolm.runs.summary import Summary

CONFIG = """\
dataset: {name: download, val_fraction: 0.1, test_fraction: 0.0, split_by: fraction, split_seed: 1337, path: a.txt}
tokenizer: {name: char}
model: {name: bigram}
size: {n_layers: 2, n_heads: 2, d_model: 16, context_length: 16, d_key: null, d_value: null, d_ff: null}
mask: {name: causal, pattern: null}
optimizer: {name: adamw, lr: 0.002}
trainer: {max_steps: 100, batch_size: 4, save_every: 250}
logger: {name: none}
seed: 1
plugins: []
"""


def make_run(
    path: Path,
    *,
    losses: Sequence[float] = (2.0,),
    bits_per_nat: float = 1.5,
    settings: dict[str, Any] | None = None,
    rows: bool = True,
    config: str | None = None,
    **summary: Any,
) -> Path:
    """Write a run evaluated every ten steps, with steps of 64 tokens and 0.1 s each.

    Args:
        path: the folder to create.
        losses: validation losses.
        bits_per_nat: bits per byte of one nat per token.
        settings: by dotted key; they replace those of CONFIG.
        rows: whether to write metrics.jsonl, with a training row for every step.
        config: the text of config.yaml, instead of CONFIG.
        summary: fields to replace in the summary of a completed run; they may have the wrong type.
    """
    import yaml

    written = yaml.safe_load(CONFIG)
    for key, value in (settings or {}).items():
        group, _, name = key.rpartition(".")
        (written.setdefault(group, {}) if group else written)[name] = value
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False) if config is None else config)
    steps = 10 * len(losses)
    best = min(losses, default=None)
    known = Summary(
        status="completed",
        kind="trained",
        choices={"model": "bigram", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"},
        seed=written["seed"],
        parameters=4225,
        vocab_size=65,
        lossless=True,
        is_noncausal=False,
        train_tokens=1000,
        val_tokens=101,
        val_scored_tokens=100,
        baseline_losses={"counted_unigram": 3.5, "counted_bigram": 2.5},
        baseline_bits_per_byte={"gzip": 3.1, "xz": 2.6},
        corpus="c" * 64,
        tokenizer="t" * 64,
        step=steps,
        tokens=64 * steps,
        seconds=steps / 10,
        tokens_per_second=640.0,
        best_val_loss=best,
        final_val_loss=losses[-1] if losses else None,
        bits_per_byte=None if best is None else best * bits_per_nat,
        flops_per_token=1000,
    )
    # Tests also write values of the wrong type.
    (path / "summary.json").write_text(json.dumps(dataclasses.asdict(known) | summary))
    if rows:
        (path / "metrics.jsonl").write_bytes(b"".join(map(encode_row, metrics(losses, bits_per_nat))))
    return path


def metrics(losses: Sequence[float], bits_per_nat: float) -> list[MetricsRow]:
    """A training row for every step, and a validation row after every tenth."""
    rows = []
    for step in range(1, 10 * len(losses) + 1):
        tokens, seconds = 64 * step, step / 10
        train = {"loss": 3.0, "lr": 0.002, "grad_norm": 0.5, "tokens_per_second": 640.0}
        rows.append(MetricsRow(step=step, split=TRAIN, tokens=tokens, seconds=seconds, **train))
        if step % 10 == 0:
            loss = losses[step // 10 - 1]
            val = {"loss": loss, "bits_per_byte": loss * bits_per_nat}
            rows.append(MetricsRow(step=step, split=VAL, tokens=tokens, seconds=seconds, **val))
    return rows
