"""Intervals and tests over seeds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Two-sided confidence level of intervals and tests.
LEVEL = 0.95
# Nodes of the integrals of the studentized range, over its two variables, and the limit of the second.
N_NODES, N_POINTS, MAX_NORMAL = 32, 96, 8.0


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
def _quantile(freedom: float) -> float:
    """The quantile of Student's t-distribution for a two-sided interval."""
    # Importing scipy.stats takes over a second, several times as long as scipy.special.
    from scipy import special

    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def t_interval(error: float, freedom: float) -> float:
    """Return the half-width of the 95% confidence interval of an estimate (Student's t).

    Args:
        error: standard error of the estimate.
        freedom: degrees of freedom of the standard error.
    """
    return _quantile(freedom) * error


def t_p_value(effect: float, error: float, freedom: float) -> float:
    """Return the two-sided p-value of an effect of zero (Student's t).

    An effect without any error, as of a deterministic model, gives 0 or 1.

    Args:
        error: standard error of the effect.
        freedom: degrees of freedom of the standard error.
    """
    if not error:
        return float(effect == 0)
    from scipy import special

    return 2 * float(special.stdtr(freedom, -abs(effect) / error))


def mean_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None below two values."""
    return _sqrt(*_variance(values)) / math.sqrt(len(values)) if len(values) > 1 else None


def welch_error(first: Sequence[float], second: Sequence[float]) -> tuple[float, float] | None:
    """Return the standard error of the difference of two means, and its degrees of freedom (Welch 1947).

    Returns:
        None for fewer than two values each, and for variances whose square a float cannot hold.
    """
    if min(len(first), len(second)) < 2:
        return None
    try:
        errors = [operator.truediv(*_variance(values)) / len(values) for values in (first, second)]
        if not sum(errors):
            return 0.0, float(len(first) + len(second) - 2)
        freedom = sum(errors) ** 2 / sum(
            error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True)
        )
    except ArithmeticError:
        return None
    return math.sqrt(sum(errors)), freedom


def brown_forsythe_p_value(groups: Sequence[Sequence[float]]) -> float:
    """Return the p-value of equal spreads (Brown and Forsythe 1974): an F-test of the distances from the medians.

    With three values per group it is conservative: one of the distances is zero.

    Returns:
        1 below two groups, and if there is no distance in any group.
    """
    distances = [[abs(value - statistics.median(values)) for value in values] for values in groups]
    total, n_groups = sum(map(len, distances)), len(distances)
    if n_groups < 2 or total <= n_groups:
        return 1.0
    means = [statistics.fmean(some) for some in distances]
    center = math.fsum(itertools.chain(*distances)) / total
    between = math.fsum(len(some) * (mean - center) ** 2 for some, mean in zip(distances, means, strict=True))
    within = math.fsum((one - mean) ** 2 for some, mean in zip(distances, means, strict=True) for one in some)
    if not within:
        return float(between == 0)
    from scipy import special

    ratio = between / (n_groups - 1) / (within / (total - n_groups))
    return float(special.fdtrc(n_groups - 1, total - n_groups, ratio))


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


def holm_adjust(p_values: Sequence[float], n_tests: Sequence[float] | None = None) -> list[float]:
    """Adjust p-values for multiple tests by Holm's step-down procedure (Holm 1979).

    Args:
        n_tests: for each p-value, the number of tests that it is corrected for in the first step; None: that of the
            p-values, which controls the family-wise error rate of any tests.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        n_left = (len(p_values) if n_tests is None else n_tests[index]) - rank
        highest = max(highest, min(max(n_left, 1.0) * p_values[index], 1.0))
        adjusted[index] = highest
    return adjusted


def n_tests_of_best(p_value: float, freedom: float, n_rows: int) -> float:
    """Return the number of tests that a comparison with the best of several rows amounts to.

    The best row is chosen by the values that are tested: among equal rows, the best and the worst differ by more than
    two rows that are named beforehand. The largest difference of n rows has the distribution of the studentized range
    (Tukey 1949; with Welch's degrees of freedom, Games and Howell 1976), so that multiplying the p-value by this number
    gives the p-value of that distribution. It is between 1, for two rows, and the number of pairs of rows.

    Args:
        p_value: of a two-sided t-test.
        freedom: its degrees of freedom.
        n_rows: number of rows that the best is chosen from.
    """
    if n_rows < 3 or not p_value:
        return n_rows * (n_rows - 1) / 2
    from scipy import special

    statistic = -float(special.stdtrit(freedom, p_value / 2))
    tail = studentized_range_tail(math.sqrt(2) * statistic, n_rows, freedom)
    return min(max(tail / p_value, 1.0), n_rows * (n_rows - 1) / 2)


def studentized_range_tail(value: float, n: int, freedom: float) -> float:
    """Return the probability that the studentized range of n normal values exceeds a value.

    The range of normal values is integrated over the largest of them, and then over the quantiles of the standard
    deviation; the error is below 1e-4.
    """
    import numpy as np
    from scipy import special

    nodes_s, weights_s = _quadrature()
    deviations_s = np.sqrt(special.chdtri(freedom, (1 - nodes_s) / 2) / freedom)
    largest_z = np.linspace(-MAX_NORMAL, MAX_NORMAL, N_POINTS)
    density_z = np.exp(-(largest_z**2) / 2) / math.sqrt(2 * math.pi) * (largest_z[1] - largest_z[0])
    below_sxz = special.ndtr(largest_z) - special.ndtr(largest_z - value * deviations_s[:, None])
    within_s = n * (below_sxz ** (n - 1) @ density_z)
    return float(1 - within_s @ weights_s / 2)


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """The nodes and weights of Gauss-Legendre quadrature, whose computation takes longer than the integral."""
    import numpy as np

    return np.polynomial.legendre.leggauss(N_NODES)
