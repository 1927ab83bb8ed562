"""Curves thinned to a number of points that a page can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nanolm.runs.metrics import MetricsRow

# A screen has no more columns, and the curves of twenty runs take some megabytes.
MAX_POINTS = 1500

# The values of a row that can be on the x axis.
X_VALUES = ("step", "tokens", "seconds")

Curve = dict[str, list[float]]


def curve(rows: Iterable[MetricsRow], quantity: str) -> Curve:
    """Return the curve of one quantity of metrics.jsonl.

    Returns:
        Lists of equal length: the quantity under "y", and one for each of X_VALUES that every row has. Rows where the
        quantity is missing or not finite are ignored.
    """
    kept = [row for row in rows if getattr(row, quantity) is not None]
    kept = [kept[index] for index in thin([getattr(row, quantity) for row in kept])]
    names = [name for name in X_VALUES if all(getattr(row, name) is not None for row in kept)]
    fields = {"y": quantity} | {name: name for name in names}
    return {name: [_round(getattr(row, field)) for row in kept] for name, field in fields.items()}


def thin(values: Sequence[float], max_points: int = MAX_POINTS) -> list[int]:
    """Choose at most `max_points` values: the first, the last, and the minimum and maximum of every few in a row.

    Spikes and the amplitude of noise are preserved.

    Returns:
        The sorted indices of the chosen values.
    """
    count = len(values)
    if count <= max_points:
        return list(range(count))
    inner = range(1, count - 1)
    size = math.ceil(len(inner) / ((max_points - 2) // 2))
    kept = {0, count - 1}
    for start in range(1, count - 1, size):
        group = range(start, min(start + size, count - 1))
        kept |= {min(group, key=values.__getitem__), max(group, key=values.__getitem__)}
    return sorted(kept)


def _round(value: float) -> float:
    """Round to six significant digits, more than any screen shows."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
