"""Fractions of a run as numbers of steps."""

from __future__ import annotations

import functools
from fractions import Fraction


# The learning rate of every step asks for the same numbers.
@functools.lru_cache(maxsize=1024)
def steps_until(fraction: float, max_steps: int) -> int:
    """Return the number of steps that end within a fraction of a run; 0.3 is exactly three tenths."""
    return int(Fraction(repr(fraction)) * max_steps)
