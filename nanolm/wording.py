"""How values, numbers, sizes and durations are written for people."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
# Before a loss that is an estimate over a part of the validation split.
ESTIMATE = "≈"
ESTIMATE_NOTE = f"{ESTIMATE} estimate over a part of the validation split (trainer.val_tokens)"
LOSSY = "lossy tokenizer: <unk> hides text, so bits per byte are not comparable"


def format_value(value: Any) -> str:
    """Format a setting as it is typed on the command line; None is a dash."""
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


def shorten(text: str, length: int = 40) -> str:
    """Cut a text that may be long, such as one from a damaged file."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def short_number(value: float) -> str:
    """Format a number in at most six characters: 812, 4.23k, 813k, 1.02M, and 3.1e15 from 10^12 on."""
    if value >= 999.5e9:
        return f"{value:.1e}".replace("e+", "e")
    for power, unit in ((9, "G"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{value / 10**power:.3g}{unit}" if value < 999.5 * 10**power else f"{value / 10**power:.0f}{unit}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def format_bytes(n_bytes: int) -> str:
    """Format a size in binary units: 812.0 B, 1.5 GiB."""
    amount, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:,.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Format a duration exactly: 12.4 s, 3 min 05 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_estimate(seconds: float) -> str:
    """Format a duration that is only an estimate: 12 s, 10 min, 2.5 h, or ? if it is not finite."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def format_age(seconds: float) -> str:
    """Format an age in its largest unit: 12 s, 5 min, 3 h, 2 d."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
