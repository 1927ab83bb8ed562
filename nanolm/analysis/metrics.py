"""What a run came to, in figures, from its summary and, where that is not written yet, from its rows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from nanolm.analysis.collection import Run
from nanolm.errors import NanolmError
from nanolm.json_text import is_finite_number
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL

# Of these the summary's figures are those of the last start, or none yet.
IN_MOTION = ("running", "cut off", "no summary")


@dataclasses.dataclass(frozen=True)
class Figures:
    """None stands for what was not measured, or not written down.

    Attributes:
        step: updates done.
        parameters: trained numbers; of a model that is counted, its entries.
        tokens: scored in training, those of every pass.
        flops: of all of them, forward and backward.
        seconds: of training, evaluations and saves in it.
        tokens_per_second: tokens by seconds.
        best_val_loss: nats per token.
        final_val_loss: nats per token.
        best_ema_val_loss: of the averaged weights, where there are some (trainer.ema_decay); nats per token.
        bits_per_byte: of the best validation loss.
        perplexity: per token, of the best validation loss.
        fault: what could not be read, in words.
    """

    step: int | None = None
    parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    best_val_loss: float | None = None
    final_val_loss: float | None = None
    best_ema_val_loss: float | None = None
    bits_per_byte: float | None = None
    perplexity: float | None = None
    fault: str | None = None


@dataclasses.dataclass(frozen=True)
class Reached:
    """When a validation loss was first at a target or under it, by the evaluations that there were."""

    step: int | None
    tokens: int | None
    seconds: float | None


def of(run: Run) -> Figures:
    """The figures of a run. Rows are read of those alone that have not ended."""
    known: dict[str, Any] = {
        name: getattr(run.summary, name)
        for name in (
            "step",
            "tokens",
            "seconds",
            "tokens_per_second",
            "best_val_loss",
            "final_val_loss",
            "best_ema_val_loss",
            "bits_per_byte",
        )
    }
    fault = None
    if run.status in IN_MOTION or run.summary.best_val_loss is None:
        try:
            known |= _from_rows(run)
        except NanolmError as error:
            fault = error.found
    best, tokens = known["best_val_loss"], known["tokens"]
    flops_per_token = run.summary.flops_per_token or _flops_by_formula(run)
    return Figures(
        **known,
        parameters=run.summary.entries if run.summary.is_fitted else run.summary.parameters,
        flops=None if tokens is None or flops_per_token is None else float(tokens) * flops_per_token,
        perplexity=None if best is None else math.exp(min(best, 700.0)),
        fault=fault,
    )


def reached(run: Run, target: float, figure: str = "loss") -> Reached | None:
    """When the validation `figure` (loss or bits_per_byte) first was `target` or less; None: never.

    Raises:
        RunError: metrics.jsonl is damaged.
    """
    for row in RunDirectory(run.path).read_metrics(VAL):
        value = getattr(row, figure)
        if value is not None and value <= target:
            return Reached(row.step, row.tokens, row.seconds)
    return None


def max_steps(run: Run) -> int | None:
    """How many updates the run is to make; a model that is counted has one."""
    steps = run.settings.get("trainer.max_steps")
    return 1 if run.summary.is_fitted else steps if is_finite_number(steps) else None


def _from_rows(run: Run) -> dict[str, Any]:
    rows = RunDirectory(run.path).read_metrics()
    if not rows:
        return {}
    last = rows[-1]
    found: dict[str, Any] = {"step": last.step, "tokens": last.tokens, "seconds": last.seconds}
    if last.tokens and last.seconds:
        found["tokens_per_second"] = round(last.tokens / last.seconds, 1)
    scored = [(row.loss, row) for row in rows if row.split == VAL and row.loss is not None]
    if scored:
        best_loss, best = min(scored, key=lambda pair: pair[0])
        found |= {"best_val_loss": best_loss, "bits_per_byte": best.bits_per_byte, "final_val_loss": scored[-1][0]}
        averaged = [row.ema_loss for _, row in scored if row.ema_loss is not None]
        found["best_ema_val_loss"] = min(averaged, default=None)
    return found


def _flops_by_formula(run: Run) -> int | None:
    """FLOPs to train on a token, by model/count.py; None where there is no formula or the settings cannot be read."""
    vocab_size = run.summary.vocab_size
    if vocab_size is None or run.summary.is_fitted:
        return None
    decisive = {key: value for key, value in run.settings.items() if key.split(".")[0] in ("model", "size")}
    return _flops_of(repr([decisive, vocab_size]), RunDirectory(run.path).config, vocab_size)


# Runs of a sweep have few models: the first config.yaml of each is read as a whole, the others are known by their key.
_FLOPS: dict[str, int | None] = {}


def _flops_of(key: str, path: Path, vocab_size: int) -> int | None:
    if key not in _FLOPS:
        from nanolm.config.yaml_io import load_yaml
        from nanolm.model import count

        try:
            config = load_yaml(path)
            forward = count.total(count.flops_per_token(config, vocab_size))
            _FLOPS[key] = count.training_flops(forward)
        except (NanolmError, ArithmeticError):
            _FLOPS[key] = None
    return _FLOPS[key]
