"""What a run came to, in figures, from its summary and, where that is not written yet, from its rows."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from nanolm.analysis.collection import Run, rows
from nanolm.errors import NanolmError
from nanolm.json_text import is_finite_number
from nanolm.runs.directory import RunDirectory

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
        name: number(run.summary.get(name))
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
    if run.status in IN_MOTION or "best_val_loss" not in run.summary:
        try:
            known |= _from_rows(run)
        except NanolmError as error:
            fault = error.found
    best, tokens = known["best_val_loss"], known["tokens"]
    flops_per_token = number(run.summary.get("flops_per_token")) or _flops_by_formula(run)
    return Figures(
        **known,
        parameters=number(run.summary.get("entries", run.summary.get("parameters"))),
        flops=None if tokens is None or flops_per_token is None else float(tokens) * flops_per_token,
        perplexity=None if best is None else math.exp(min(best, 700.0)),
        fault=fault,
    )


def reached(run: Run, target: float, figure: str = "loss") -> Reached | None:
    """When the validation `figure` (loss or bits_per_byte) first was `target` or less; None: never.

    Raises:
        RunError: metrics.jsonl is damaged.
    """
    for row in rows(run, "val"):
        value = number(row.get(figure))
        if value is not None and value <= target:
            return Reached(*(number(row.get(name)) for name in ("step", "tokens", "seconds")))
    return None


def number(value: Any) -> Any:
    """A finite number as it is; None for anything else that a file may hold in its place."""
    return value if is_finite_number(value) else None


def numbers(table: Any) -> dict[str, float]:
    """The finite numbers of a table."""
    return (
        {name: value for name, value in table.items() if number(value) is not None} if isinstance(table, dict) else {}
    )


def max_steps(run: Run) -> int | None:
    """How many updates the run is to make; a model that is counted has one."""
    return 1 if "entries" in run.summary else number(run.settings.get("trainer.max_steps"))


def _from_rows(run: Run) -> dict[str, Any]:
    everything = rows(run)
    if not everything:
        return {}
    last = everything[-1]
    found = {name: number(last.get(name)) for name in ("step", "tokens", "seconds")}
    if found["tokens"] and found["seconds"]:
        found["tokens_per_second"] = round(found["tokens"] / found["seconds"], 1)
    scored = [row for row in everything if row.get("split") == "val" and number(row.get("loss")) is not None]
    if scored:
        best = min(scored, key=lambda row: row["loss"])
        found |= {"best_val_loss": best["loss"], "bits_per_byte": number(best.get("bits_per_byte"))}
        found["final_val_loss"] = scored[-1]["loss"]
        averaged = [row["ema_loss"] for row in scored if number(row.get("ema_loss")) is not None]
        found["best_ema_val_loss"] = min(averaged, default=None)
    return found


def _flops_by_formula(run: Run) -> int | None:
    """FLOPs to train on a token, by model/count.py; None where there is no formula or the settings cannot be read."""
    vocab_size = number(run.summary.get("vocab_size"))
    if vocab_size is None or "entries" in run.summary:
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
