"""Curves thinned to a number of points that a page can hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanolm.runs.metrics import MetricsRow

# A screen has no more columns, and the curves of twenty runs take some megabytes.
MAX_POINTS = 1500

# The values of a row that can be on the x axis.
X_VALUES = ("step", "tokens", "seconds")

Curve = dict[str, list[Any]]


def curves(rows: Sequence[MetricsRow], quantities: Iterable[str]) -> list[Curve]:
    """Return the curves of some quantities of metrics.jsonl.

    Returns:
        For each, lists of equal length: the quantity under "y", and one for each of X_VALUES that every row has. Rows
        where the quantity is missing or not finite are ignored.
    """
    # Curves share the lists of their common x values.
    columns = {name: [_round(getattr(row, name)) for row in rows] for name in X_VALUES}
    return [_curve([getattr(row, quantity) for row in rows], columns) for quantity in quantities]


def _curve(values: Sequence[Any], columns: Mapping[str, list[Any]]) -> Curve:
    kept = [index for index, value in enumerate(values) if value is not None]
    kept = [kept[index] for index in thin([values[index] for index in kept])]
    if len(kept) < len(values):
        columns = {name: [column[index] for index in kept] for name, column in columns.items()}
    known = {name: column for name, column in columns.items() if None not in column}
    return {"y": [_round(values[index]) for index in kept], **known}


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


def _round(value: Any) -> Any:
    """Round to six significant digits, more than any screen shows."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
