"""Curves short enough for a page: of many rows those that show how it went."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nanolm.runs.metrics import MetricsRow

# Points of a curve on the page. Those of twenty runs make some megabytes, and a screen has no more columns.
MOST_POINTS = 1500

# What a row says of how far the run was.
PLACES = ("step", "tokens", "seconds")

Curve = dict[str, list[float]]


def curve(rows: Iterable[MetricsRow], quantity: str, most: int = MOST_POINTS) -> Curve:
    """One quantity of the rows, with the places where it was measured.

    Returns:
        Lists of equal length: the quantity under "y", and `PLACES`. Rows without the quantity, and those where it is no
        finite number, are left out; so is a place that some row lacks. All are empty where nothing is left.
    """
    kept = [row for row in rows if getattr(row, quantity) is not None]
    kept = [kept[index] for index in thinned([getattr(row, quantity) for row in kept], most)]
    places = [place for place in PLACES if all(getattr(row, place) is not None for row in kept)]
    fields = {"y": quantity} | {place: place for place in places}
    return {name: [_short(getattr(row, field)) for row in kept] for name, field in fields.items()}


def thinned(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """Which of the values are drawn: the first, the last, and the lowest and the highest of every few in a row.

    A spike stays a spike, and the height of noise what it was. All are kept where there are at most `most`.

    Returns:
        Their indices, in order, at most `most` of them.
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    inner = range(1, count - 1)
    size = math.ceil(len(inner) / ((most - 2) // 2))
    kept = {0, count - 1}
    for start in range(1, count - 1, size):
        group = range(start, min(start + size, count - 1))
        kept |= {min(group, key=values.__getitem__), max(group, key=values.__getitem__)}
    return sorted(kept)


def _short(value: float) -> float:
    """Six digits: more than any screen shows."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
