"""Intervals and tests over seeds."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import statistics
from collections.abc import Sequence

# Two-sided confidence level of intervals and tests.
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric over seeds.

    Attributes:
        mean: None where no seed has a value.
        interval: half-width of the 95% confidence interval of the mean; None with fewer than two values.
        values: one per seed, without seeds that have none.
    """

    mean: float | None
    interval: float | None
    values: tuple[float, ...]


def estimate(values: Sequence[float | None]) -> Estimate:
    """Estimate the mean of a metric from its value for each seed."""
    known = tuple(value for value in values if value is not None)
    return Estimate(statistics.fmean(known) if known else None, confidence_interval(known), known)


def confidence_interval(values: Sequence[float]) -> float | None:
    """Return the half-width of the 95% confidence interval of the mean (Student's t).

    Returns:
        None below two values, and if one is infinite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return _quantile(len(values) - 1) * _sqrt(*_variance(values)) / math.sqrt(len(values))


@functools.cache
def _quantile(freedom: int) -> float:
    """The quantile of Student's t-distribution for a two-sided interval."""
    # Importing scipy.stats takes over a second, several times as long as scipy.special.
    from scipy import special

    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def welch_p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of equal means by Welch's t-test (Welch 1947).

    Values without variance, as of a deterministic model, give 0 or 1.

    Returns:
        None for fewer than two values each, and for variances whose square a float cannot hold.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = statistics.fmean(first) - statistics.fmean(second)
    try:
        errors = [operator.truediv(*_variance(values)) / len(values) for values in (first, second)]
        if not sum(errors):
            return float(difference == 0)
        freedom = sum(errors) ** 2 / sum(
            error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True)
        )
    except ArithmeticError:
        return None
    from scipy import special

    return 2 * float(special.stdtr(freedom, -abs(difference) / math.sqrt(sum(errors))))


def _variance(values: Sequence[float]) -> tuple[int, int]:
    """Return the variance of a sample as a numerator and a denominator, without rounding.

    As `statistics.variance`, which adds fractions and takes twenty times as long.
    """
    ratios = [value.as_integer_ratio() for value in values]
    # The denominators of floats are powers of two.
    unit = max(denominator for _, denominator in ratios)
    scaled = [numerator * (unit // denominator) for numerator, denominator in ratios]
    n, total = len(scaled), sum(scaled)
    return n * sum(value * value for value in scaled) - total * total, n * (n - 1) * unit * unit


def _sqrt(numerator: int, denominator: int) -> float:
    """Return the square root of a fraction, correctly rounded as that of `statistics.stdev`."""
    # The integer root has at least 54 bits, of which the last is 1 if it is not exact.
    shift = max(0, 110 - numerator.bit_length() + denominator.bit_length())
    shift += shift % 2
    quotient, rest = divmod(numerator << shift, denominator)
    root = math.isqrt(quotient)
    return (root | (rest > 0 or root * root < quotient)) / (1 << shift // 2)


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple tests, controlling the family-wise error rate (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = highest
    return adjusted
