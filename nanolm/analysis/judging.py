"""The loss that runs are judged by: at the last step that all of them share, or at a given cost."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from nanolm.analysis.collection import Run
from nanolm.analysis.metrics import MAX_EXPONENT, RunMetrics, has_estimates
from nanolm.analysis.rows import Measured, averaged
from nanolm.errors import NanolmError, SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import VAL
from nanolm.runs.summary import FINISHED
from nanolm.wording import short_number

# Costs at which curves are read, with their units.
AXES = {"step": "steps", "tokens": "tokens", "flops": "FLOPs", "seconds": "s"}
# Statuses of runs whose last loss is not that of a sound model.
BROKEN = ("diverged", "failed", "damaged")
# The judged loss, and what is computed from it.
JUDGED_LOSSES = ("val_loss", "bits_per_byte", "perplexity")
# Relative difference of tokens up to which budgets are equal: lines and documents have different lengths.
SAME_BUDGET = 0.01


class At(NamedTuple):
    """A cost at which every curve is read, such as 5 million tokens; `axis` is one of AXES."""

    axis: str
    value: float

    def __str__(self) -> str:
        """The cost in words."""
        return f"step {self.value:g}" if self.axis == "step" else f"{short_number(self.value)} {AXES[self.axis]}"


@dataclasses.dataclass(frozen=True)
class Reading:
    """A loss read from a curve.

    Attributes:
        loss: nats per token; None outside of the curve.
        is_interpolated: whether it is between two evaluations.
        is_estimate: whether a part of the validation split was scored (trainer.val_tokens).
        problem: why there is no loss.
    """

    loss: float | None
    is_interpolated: bool = False
    is_estimate: bool = False
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Judged:
    """Groups of runs with the loss that they are judged by.

    Attributes:
        groups: as given, with `val_loss`, bits per byte and perplexity of the judged loss.
        point: where it was read, in words, for the heading of the column.
        evaluations: number of evaluations of each run, in words; empty if unknown.
        has_test: whether every judged run was scored on the test split.
        notes: remarks for the user.
    """

    groups: list[list[Measured]]
    point: str
    evaluations: str
    has_test: bool
    notes: list[str]


def judge(groups: Sequence[Sequence[Measured]], at: At | None = None) -> Judged:
    """Read the loss that each run is judged by.

    Without a given cost, it is the loss at the last step at which all compared runs were evaluated: the final one if
    they have the same budget. Compared are the completed runs if at least two groups have some, else all that did not
    diverge or fail; other runs are listed without a judged loss.

    Args:
        groups: runs that differ only by their seed.
        at: the cost at which every curve is read; None for the last step that is shared.

    Raises:
        SettingsError: no run has a loss at the given cost.
    """
    compared = [one for group in groups for one in _compared(group, groups, at)]
    if at is not None:
        readings = {id(run): read_at(run, found, at) for run, found in compared}
        point, notes = f"at {at}", _notes_of_readings(readings, compared, at)
    else:
        readings, point, notes = _at_shared_step(compared)
        notes = [*_budget_notes(compared, point), *notes, *_left_out_notes(groups, compared)]
    judged = [[(run, _with_loss(found, readings.get(id(run)))) for run, found in group] for group in groups]
    has_test = at is None and bool(compared) and all(found.test_loss is not None for _, found in compared)
    return Judged(judged, point, _evaluations(compared), has_test, notes)


def read_at(run: Run, metrics: RunMetrics, at: At) -> Reading:
    """Read the validation loss of a run at a cost, interpolated linearly between evaluations."""
    if not _has_steps(run):
        return _last_reading(metrics)
    try:
        curve = val_curve(run, metrics, at.axis)
    except NanolmError as error:
        return Reading(None, problem=error.found)
    if not curve:
        return Reading(None, problem=f"has no evaluation with {AXES[at.axis]}")
    costs = sorted(curve)
    is_last = at.value >= costs[-1]
    is_estimate = "final_val_loss" in metrics.sampled if is_last else has_estimates(run)
    if at.value in curve:
        return Reading(curve[at.value], is_estimate=is_estimate)
    if not costs[0] <= at.value <= costs[-1]:
        end, which = (costs[0], "was first") if at.value < costs[0] else (costs[-1], "was last")
        return Reading(None, problem=f"{which} evaluated at {At(at.axis, end)}")
    return Reading(interpolate(curve, at.value), is_interpolated=True, is_estimate=is_estimate)


def interpolate(curve: Mapping[float, float], cost: float) -> float | None:
    """Return the loss at a cost, linearly between two evaluations; None outside of the curve."""
    if cost in curve:
        return curve[cost]
    costs = sorted(curve)
    after = bisect.bisect(costs, cost)
    if after in (0, len(costs)):
        return None
    low, high = costs[after - 1], costs[after]
    share = (cost - low) / (high - low)
    return (1 - share) * curve[low] + share * curve[high]


def val_curve(run: Run, metrics: RunMetrics, axis: str) -> dict[float, float]:
    """Return the validation loss by the cost of training until then, in the order of evaluations.

    Args:
        axis: one of AXES.

    Raises:
        RunError: the rows of the run cannot be read.
    """
    per_token = metrics.flops / metrics.tokens if metrics.flops and metrics.tokens else None
    curve: dict[float, float] = {}
    for row in RunDirectory(run.path).iter_metrics(VAL):
        if axis == "flops":
            cost = None if row.tokens is None or per_token is None else row.tokens * per_token
        else:
            cost = getattr(row, axis)
        if cost is not None and row.loss is not None:
            curve[float(cost)] = row.loss
    return curve


def _compared(group: Sequence[Measured], groups: Sequence[Sequence[Measured]], at: At | None) -> list[Measured]:
    """The runs of a group that are judged."""
    runs = averaged([run for run, _ in group])
    of_group = [one for one in group if one[0] in runs]
    if at is not None:
        return of_group
    n_completed = sum(any(run.status in FINISHED for run, _ in some) for some in groups)
    if n_completed > 1:
        return [one for one in of_group if one[0].status in FINISHED]
    sound = [one for one in of_group if one[0].status not in BROKEN]
    has_sound = any(run.status not in BROKEN for some in groups for run, _ in some)
    return sound if has_sound else of_group


def _at_shared_step(compared: Sequence[Measured]) -> tuple[dict[int, Reading], str, list[str]]:
    """Read each run at the last step at which all were evaluated; interpolate if there is none."""
    readings = {id(run): _last_reading(found) for run, found in compared}
    stepped = [(run, found) for run, found in compared if _has_steps(run) and found.final_val_loss is not None]
    if all(run.status in FINISHED for run, _ in stepped) and len({found.step for _, found in stepped}) <= 1:
        return readings, "final", []
    curves = {}
    for run, found in stepped:
        try:
            curves[id(run)] = val_curve(run, found, "step")
        except NanolmError as error:
            readings[id(run)] = Reading(None, problem=error.found)
    curves = {key: curve for key, curve in curves.items() if curve}
    if not curves:
        return readings, "final", []
    shared = set.intersection(*map(set, curves.values()))
    step, notes = max(shared, default=0.0), []
    if not shared:
        step = min(map(max, curves.values()))
        notes.append("the runs share no evaluated step: losses are interpolated between evaluations (~)")
    at = At("step", step)
    readings |= {id(run): read_at(run, found, at) for run, found in stepped if id(run) in curves}
    notes += _missing_notes(readings, stepped, at)
    is_final = all(max(curve) == step for curve in curves.values())
    return readings, "final" if is_final else f"at step {step:,.0f}", notes


def _with_loss(metrics: RunMetrics, reading: Reading | None) -> RunMetrics:
    """Replace the judged loss of a run, and what is derived from it."""
    loss = None if reading is None else reading.loss
    ratio = metrics.bits_per_nat
    is_estimate = reading is not None and reading.is_estimate
    return dataclasses.replace(
        metrics,
        val_loss=loss,
        bits_per_byte=None if loss is None or ratio is None else loss * ratio,
        perplexity=None if loss is None else math.exp(min(loss, MAX_EXPONENT)),
        is_interpolated=reading is not None and reading.is_interpolated,
        sampled=metrics.sampled.difference(JUDGED_LOSSES).union(JUDGED_LOSSES if is_estimate else ()),
    )


def _last_reading(metrics: RunMetrics) -> Reading:
    name = "best_val_loss" if metrics.final_val_loss is None else "final_val_loss"
    return Reading(getattr(metrics, name), is_estimate=name in metrics.sampled)


def _has_steps(run: Run) -> bool:
    return not (run.summary.is_fitted or run.summary.is_imported)


def _evaluations(compared: Sequence[Measured]) -> str:
    """The numbers of evaluations, from the steps and trainer.eval_every."""
    counts = set()
    for run, found in compared:
        every = run.settings.get("trainer.eval_every")
        if _has_steps(run) and found.step and isinstance(every, int) and every > 0:
            counts.add(-(-found.step // every))
    if not counts:
        return ""
    return f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,} to {max(counts):,}"


def _budget_notes(compared: Sequence[Measured], point: str) -> list[str]:
    budgets = [found.tokens for run, found in compared if _has_steps(run) and found.tokens]
    if not budgets or max(budgets) <= (1 + SAME_BUDGET) * min(budgets):
        return []
    where = "after their last step" if point == "final" else point
    return [
        f"the rows had different budgets, from {short_number(min(budgets))} to {short_number(max(budgets))} tokens: "
        f"judged {where}, the last that all share; --at tokens={short_number(min(budgets))} compares them at equal cost"
    ]


def _left_out_notes(groups: Sequence[Sequence[Measured]], compared: Sequence[Measured]) -> list[str]:
    judged = {id(run) for run, _ in compared}
    left_out = [run for group in groups if not any(id(run) in judged for run, _ in group) for run, _ in group]
    if not left_out:
        return []
    names = ", ".join(f"{run.name} ({run.status})" for run in left_out[:3])
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return [f"not judged, as they are not completed: {names}{more}; --at step=N compares runs that did not finish"]


def _notes_of_readings(readings: Mapping[int, Reading], compared: Sequence[Measured], at: At) -> list[str]:
    missing = [(run, readings[id(run)].problem) for run, _ in compared if readings[id(run)].loss is None]
    if len(missing) == len(compared):
        listed = "; ".join(f"{run.name} {problem}" for run, problem in missing[:3])
        raise SettingsError(
            f"no run has a loss at {at}: {listed}" + (f"; and {len(missing) - 3} more" if len(missing) > 3 else ""),
            where="--at",
            hint="choose a cost that the runs share",
        )
    notes = _missing_notes(readings, compared, at)
    if any(reading.is_interpolated for reading in readings.values()):
        notes.append("~ interpolated linearly between two evaluations")
    return notes


def _missing_notes(readings: Mapping[int, Reading], compared: Sequence[Measured], at: At) -> list[str]:
    return [
        f"{run.name} {reading.problem}: it has no loss at {at}"
        for run, _ in compared
        if (reading := readings[id(run)]).loss is None and reading.problem
    ]
