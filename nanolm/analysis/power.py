"""Number of seeds that a comparison needs to detect a difference."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from nanolm.analysis.statistics import LEVEL, n_tests_of_best

# Probability with which a difference is to be detected.
POWER = 0.8
# Numbers of seeds above it are not computed.
MAX_SEEDS = 1000
# The number of tests depends on the degrees of freedom, and these on the number of seeds.
N_ITERATIONS = 3


def seeds_needed(
    difference: float, spread: float, *, is_paired: bool, n_pooled: int = 2, n_rows: int = 2
) -> int | None:
    """Return the smallest number of seeds per row that detects a difference with 80% power.

    Args:
        difference: true difference of two rows.
        spread: standard deviation of a run; with pairs, of what the rows do not share.
        is_paired: whether rows are paired by seed.
        n_pooled: number of rows that the spread is pooled over; 2 if it is that of the two rows.
        n_rows: number of rows that the best is chosen from, which p-values are corrected for.

    Returns:
        None if it is above MAX_SEEDS.
    """
    found = 2
    for _ in range(N_ITERATIONS):
        n_tests = _tests_at_level(freedom_of(found, is_paired, n_pooled), n_rows)

        def is_enough(n_seeds: int, n_tests: float = n_tests) -> bool:
            return power(difference, spread, n_seeds, is_paired=is_paired, n_pooled=n_pooled, n_tests=n_tests) >= POWER

        needed = _smallest(is_enough)
        if needed is None or needed == found:
            return needed
        found = needed
    return found


def power(
    difference: float, spread: float, n_seeds: int, *, is_paired: bool, n_pooled: int = 2, n_tests: float = 1
) -> float:
    """Return the probability that a two-sided t-test finds a difference; see `seeds_needed`.

    The statistic has a noncentral t-distribution.

    Args:
        n_tests: number of tests that p-values are corrected for.
    """
    if not spread:
        return float(difference != 0)
    from scipy import special

    freedom = freedom_of(n_seeds, is_paired, n_pooled)
    critical = float(special.stdtrit(freedom, 1 - (1 - LEVEL) / 2 / n_tests))
    center = abs(difference) / spread * math.sqrt(n_seeds / 2)
    # Far from the critical value, where the distribution function may not be computed.
    if center > critical + 40:
        return 1.0
    upper, lower = (float(special.nctdtr(freedom, center, at)) for at in (critical, -critical))
    return 1 - upper + (lower if math.isfinite(lower) else 0.0)


def freedom_of(n_seeds: int, is_paired: bool, n_pooled: int) -> int:
    """Return the degrees of freedom of a spread with the same number of seeds in each row."""
    return (n_seeds - 1) * (n_pooled - 1 if is_paired else n_pooled)


@functools.cache
def _tests_at_level(freedom: int, n_rows: int) -> float:
    """The number of tests by which p-values near the level are multiplied."""
    n_tests = 1.0
    for _ in range(4):
        n_tests = n_tests_of_best((1 - LEVEL) / n_tests, freedom, n_rows)
    return n_tests


def _smallest(is_enough: Callable[[int], bool]) -> int | None:
    """Return the smallest number of seeds, at least 2, that is enough; None if it is above MAX_SEEDS."""
    low, high = 1, 2
    while not is_enough(high):
        low, high = high, 2 * high
        if low > MAX_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high if high <= MAX_SEEDS else None
