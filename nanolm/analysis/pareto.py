"""Which row of a comparison has the lowest loss at which cost."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from nanolm.analysis.judging import AXES, interpolate, val_curve
from nanolm.analysis.metrics import METRICS, measure
from nanolm.analysis.rows import Row, averaged
from nanolm.errors import NanolmError, SettingsError


@dataclasses.dataclass(frozen=True)
class Segment:
    """Costs at which one row is the best.

    Attributes:
        row: index of the row.
        start, end: the costs of its first and last evaluation that no other row equals at the same or a lower cost.
        first_loss, last_loss: the mean losses of its seeds there.
    """

    row: int
    start: float
    end: float
    first_loss: float
    last_loss: float


def mean_curves(rows: Sequence[Row], axis: str, judged: str) -> dict[int, dict[float, float]]:
    """Return the validation loss of each row by its cost, as the mean over its seeds.

    A curve has the costs at which its first run was evaluated and that all of its seeds reach; the others are
    interpolated. Bits per byte are used where rows are judged by these. Rows that are not comparable are left out.

    Args:
        axis: one of AXES.

    Raises:
        SettingsError: no row has a curve.
    """
    in_bits = not METRICS[judged].per_token
    found: dict[int, dict[float, float]] = {}
    for index, row in enumerate(rows):
        curves = [_curve(row, n, axis, in_bits) for n in range(len(averaged(row.runs)))]
        if not row.is_comparable or not curves or not all(curves):
            continue
        low, high = max(map(min, curves)), min(map(max, curves))
        mean = {
            cost: statistics.fmean(loss for curve in curves if (loss := interpolate(curve, cost)) is not None)
            for cost in sorted(curves[0])
            if low <= cost <= high and cost > 0
        }
        if mean:
            found[index] = mean
    if not found:
        raise SettingsError(
            f"no row has a validation loss by {AXES[axis]}",
            where="--pareto",
            hint="name runs that were trained in steps, or another cost: flops, tokens, seconds or step",
        )
    return found


def pareto_front(curves: Mapping[int, Mapping[float, float]]) -> list[Segment]:
    """Return the evaluations that no other evaluation beats at the same or a lower cost, joined by row."""
    points = sorted((cost, loss, row) for row, curve in curves.items() for cost, loss in curve.items())
    front: list[Segment] = []
    lowest = float("inf")
    for cost, loss, row in points:
        if loss >= lowest:
            continue
        lowest = loss
        if front and front[-1].row == row:
            front[-1] = dataclasses.replace(front[-1], end=cost, last_loss=loss)
        else:
            front.append(Segment(row, cost, cost, loss, loss))
    return front


def _curve(row: Row, n: int, axis: str, in_bits: bool) -> dict[float, float]:
    run, metrics = measure(averaged(row.runs)[n])
    try:
        curve = val_curve(run, metrics, axis)
    except NanolmError:
        return {}
    ratio = metrics.bits_per_nat if in_bits else 1.0
    return {} if ratio is None else {cost: loss * ratio for cost, loss in curve.items()}
