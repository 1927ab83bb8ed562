"""How values and numbers are written for people."""

from __future__ import annotations

from typing import Any

MISSING = "–"


def format_value(value: Any) -> str:
    """A setting as it is typed on the command line; None is a dash."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, list):
        return ",".join(map(format_value, value))
    return str(value)


def short_number(value: float) -> str:
    """A number in at most six characters: 812, 4.23k, 813k, 1.02M, and 3.1e15 from a thousand billions on."""
    if value >= 999.5e9:
        return f"{value:.1e}".replace("e+", "e")
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g}{unit}" if value < 999.5 * 10**power else f"{value / 10**power:.0f}{unit}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
