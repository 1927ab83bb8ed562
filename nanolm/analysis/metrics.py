"""The metrics of a run, from its summary or, while it runs, from its rows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nanolm.analysis.collection import Run
from nanolm.errors import NanolmError
from nanolm.json_text import is_finite_number
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL, read_last_row

# Runs whose summary has no results, or those of an earlier session.
UNFINISHED = ("running", "unfinished", "no summary")

# Losses above it have the perplexity of this one: exp overflows.
MAX_EXPONENT = 700.0

# Fields that metrics and summaries share.
SUMMARY_FIELDS = (
    *("step", "tokens", "seconds", "tokens_per_second"),
    *("best_val_loss", "final_val_loss", "best_ema_val_loss", "bits_per_byte"),
    *("test_loss", "test_bits_per_byte"),
)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a comparison.

    Attributes:
        heading: column heading, which may be broken at line ends. {point} is where the judged loss was read, {best} the
            number of evaluations that the best is chosen from, {target} the target.
        is_of_loss: whether it is computed from a loss, so that its spread over seeds matters.
        per_token: whether it is comparable only between runs with the same tokens.
        more_is_better: whether the highest value is the best.
    """

    heading: str
    is_of_loss: bool = False
    per_token: bool = False
    more_is_better: bool = False


METRICS = {
    "val_loss": Metric("val loss\n{point}", is_of_loss=True, per_token=True),
    "bits_per_byte": Metric("bits per\nbyte", is_of_loss=True),
    "test_loss": Metric("test loss", is_of_loss=True, per_token=True),
    "test_bits_per_byte": Metric("test bits\nper byte", is_of_loss=True),
    "best_val_loss": Metric("val loss\n{best}", is_of_loss=True, per_token=True),
    "best_bits_per_byte": Metric("bits per byte\n{best}", is_of_loss=True),
    "final_val_loss": Metric("val loss\nfinal", is_of_loss=True, per_token=True),
    "best_ema_val_loss": Metric("val loss\nof EMA", is_of_loss=True, per_token=True),
    "perplexity": Metric("perplexity", is_of_loss=True, per_token=True),
    "parameters": Metric("param-\neters"),
    "trained_parameters": Metric("trained\nparam."),
    "tokens": Metric("tokens"),
    "flops": Metric("FLOPs"),
    "seconds": Metric("seconds"),
    "tokens_per_second": Metric("tokens\n/s", more_is_better=True),
    "tokens_to_target": Metric("tokens to\n{target:g}"),
    "seconds_to_target": Metric("seconds to\n{target:g}"),
}
# Metrics in bits per byte, which compare between tokenizers.
IN_BITS = ("bits_per_byte", "test_bits_per_byte", "best_bits_per_byte")
TEST_METRICS = ("test_loss", "test_bits_per_byte")
TO_TARGET = ("tokens_to_target", "seconds_to_target")

# Loading a config.yaml is slow, and a sweep has few different models: FLOPs by the settings of model and size.
_FLOPS: dict[str, int | None] = {}


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """The metrics of a run; None where unknown.

    Attributes:
        step: optimizer steps done.
        parameters: of the model; entries of a fitted model.
        trained_parameters: of low-rank adapters; None if all parameters are trained.
        tokens: training tokens scored, over all epochs.
        flops: training FLOPs, forward and backward.
        seconds: training time, including evaluations and saves.
        best_val_loss: nats per token.
        final_val_loss: nats per token.
        best_ema_val_loss: of the averaged weights (trainer.ema_decay); nats per token.
        best_bits_per_byte: of the best validation loss.
        val_loss: the validation loss that a comparison judges by; None outside of a comparison.
        is_interpolated: whether it is between two evaluations.
        bits_per_byte: of the best validation loss; in a comparison, of the judged one.
        perplexity: per token, of the same loss.
        test_loss: of the selected checkpoint on the test split, in nats per token. Likewise test_bits_per_byte.
        tokens_to_target: until validation first reached the target; None if it never did. Likewise seconds_to_target.
        sampled: the losses that are estimates over a part of the validation split (trainer.val_tokens), by name.
        fault: what could not be read.
    """

    step: int | None = None
    parameters: int | None = None
    trained_parameters: int | None = None
    tokens: int | None = None
    flops: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    best_val_loss: float | None = None
    final_val_loss: float | None = None
    best_ema_val_loss: float | None = None
    best_bits_per_byte: float | None = None
    val_loss: float | None = None
    is_interpolated: bool = False
    bits_per_byte: float | None = None
    perplexity: float | None = None
    test_loss: float | None = None
    test_bits_per_byte: float | None = None
    tokens_to_target: int | None = None
    seconds_to_target: float | None = None
    sampled: frozenset[str] = frozenset()
    fault: str | None = None

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte of a loss of one nat per token; None for a run that was never evaluated."""
        if not self.best_val_loss or not self.best_bits_per_byte:
            return None
        return self.best_bits_per_byte / self.best_val_loss


def compute_metrics(run: Run, target: float | None = None, quantity: str = "loss") -> RunMetrics:
    """Compute the metrics of a run. Rows are read only for a target, and if the summary has no results.

    Args:
        target: reached once the quantity is less or equal; None for no target.
        quantity: loss or bits_per_byte.
    """
    known: dict[str, Any] = {name: getattr(run.summary, name) for name in SUMMARY_FIELDS}
    fault = None
    try:
        if target is not None:
            known |= _to_target(run, target, quantity)
        if run.status in UNFINISHED or run.summary.best_val_loss is None:
            known |= _from_rows(run)
    except NanolmError as error:
        fault = error.found
    best, tokens = known["best_val_loss"], known["tokens"]
    flops_per_token = run.summary.flops_per_token or _flops_by_formula(run)
    return RunMetrics(
        **known,
        parameters=run.summary.entries if run.summary.is_fitted else run.summary.parameters,
        trained_parameters=run.summary.trained_parameters if run.summary.base else None,
        flops=None if tokens is None or flops_per_token is None else float(tokens) * flops_per_token,
        best_bits_per_byte=known["bits_per_byte"],
        sampled=_sampled(run),
        perplexity=None if best is None else math.exp(min(best, MAX_EXPONENT)),
        fault=fault,
    )


def measure(run: Run, target: float | None = None, quantity: str = "loss") -> tuple[Run, RunMetrics]:
    """Compute the metrics of a run; a run whose rows cannot be read is returned as damaged. See `compute_metrics`."""
    found = compute_metrics(run, target, quantity)
    return run.with_fault(found.fault) if found.fault else run, found


def has_estimates(run: Run) -> bool:
    """Return whether evaluations of a run before its last one may be estimates."""
    return run.settings.get("trainer.val_tokens") is not None


def _sampled(run: Run) -> frozenset[str]:
    """Return the names of the losses of a run that are estimates."""
    if not has_estimates(run):
        return frozenset()
    is_unfinished = run.status in UNFINISHED
    names: set[str] = set()
    if is_unfinished or run.summary.best_val_sample is not None:
        names |= {"best_val_loss", "best_ema_val_loss", "best_bits_per_byte", "bits_per_byte", "perplexity"}
    if is_unfinished or run.summary.final_val_sample is not None:
        names.add("final_val_loss")
    return frozenset(names)


def _to_target(run: Run, target: float, quantity: str) -> dict[str, Any]:
    for row in RunDirectory(run.path).iter_metrics(VAL):
        value = getattr(row, quantity)
        if value is not None and value <= target:
            return {"tokens_to_target": row.tokens, "seconds_to_target": row.seconds}
    return {}


def max_steps(run: Run) -> int | None:
    """The number of optimizer steps of the whole run; a fitted model has one."""
    steps = run.summary.max_steps or run.settings.get("trainer.max_steps")
    return 1 if run.summary.is_fitted else steps if is_finite_number(steps) else None


def _from_rows(run: Run) -> dict[str, Any]:
    directory = RunDirectory(run.path)
    last = read_last_row(directory.metrics)
    if last is None:
        return {}
    found: dict[str, Any] = {"step": last.step, "tokens": last.tokens, "seconds": last.seconds}
    if last.tokens and last.seconds:
        found["tokens_per_second"] = round(last.tokens / last.seconds, 1)
    best_ema: float | None = None
    for row in directory.iter_metrics(VAL):
        if row.loss is None:
            continue
        if "best_val_loss" not in found or row.loss < found["best_val_loss"]:
            found |= {"best_val_loss": row.loss, "bits_per_byte": row.bits_per_byte}
        if row.ema_loss is not None:
            best_ema = row.ema_loss if best_ema is None else min(best_ema, row.ema_loss)
        found |= {"final_val_loss": row.loss, "best_ema_val_loss": best_ema}
    return found


def _flops_by_formula(run: Run) -> int | None:
    """Training FLOPs per token by nanolm.model.count; None if there is no formula or the settings cannot be read."""
    vocab_size = run.summary.vocab_size
    if vocab_size is None or run.summary.is_fitted:
        return None
    groups = ("model", "size", "trainer")
    decisive = {key: value for key, value in run.settings.items() if key.split(".")[0] in groups}
    key = repr([decisive, vocab_size])
    if key not in _FLOPS:
        from nanolm.config.yaml_io import load_yaml
        from nanolm.model import count

        try:
            config = load_yaml(RunDirectory(run.path).config)
            _FLOPS[key] = count.mean_flops_per_token(config, vocab_size)
        except (NanolmError, ArithmeticError):
            _FLOPS[key] = None
    return _FLOPS[key]
