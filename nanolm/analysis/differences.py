"""Differences between rows of runs: paired by seed where rows share their batches, with one spread for all rows."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeGuard

from nanolm.analysis.statistics import brown_forsythe_p_value, mean_error, t_interval, t_p_value, welch_error

# Rows that a spread is pooled over at least: two are compared with their own spreads.
MIN_POOLED = 3
# p-value of the Brown-Forsythe test under which spreads are not pooled.
AGREEMENT = 0.05
# Iterations of the fit of row and seed effects, and the change relative to the values at which it ends.
MAX_ITERATIONS, TOLERANCE = 1000, 1e-12


@dataclasses.dataclass(frozen=True)
class Sample:
    """The judged metric of a row.

    Attributes:
        values: by seed, all finite.
        batches: equal for rows that see the same batches with the same seed; None if that is unknown.
    """

    values: Mapping[Any, float]
    batches: Hashable | None


@dataclasses.dataclass(frozen=True)
class Spread:
    """The standard deviation of a run, pooled over rows.

    Attributes:
        value: standard deviation; with pairs, of what the seeds of all rows do not share.
        freedom: degrees of freedom.
        n_rows: number of rows that it is pooled over.
        p_value: of equal spreads in all rows (Brown and Forsythe 1974); 1 for a single row.
        is_paired: whether effects that seeds have on all rows are removed.
    """

    value: float
    freedom: int
    n_rows: int
    p_value: float
    is_paired: bool

    @property
    def agrees(self) -> bool:
        """Whether the spreads of the rows do not differ significantly."""
        return self.p_value >= AGREEMENT


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a row to a reference row.

    Attributes:
        effect: mean of the row minus mean of the reference; over the shared seeds if it is paired.
        interval: half-width of its 95% confidence interval.
        p_value: two-sided, of equal means, not corrected for other rows.
        freedom: degrees of freedom.
        spread: standard deviation of a run; with pairs, of what the two rows do not share.
        n_seeds: number of pairs, or of seeds of the row that has fewer.
        n_unpaired: number of seeds that only one of the rows has, and that are left out.
        is_paired: whether it is the mean difference per seed.
        pooled: the spread it is tested with; None for the rows' own.
    """

    effect: float
    interval: float
    p_value: float
    freedom: float
    spread: float
    n_seeds: int
    n_unpaired: int = 0
    is_paired: bool = False
    pooled: Spread | None = None

    @property
    def method(self) -> str:
        """The test: paired, paired pooled, pooled or welch."""
        if self.is_paired:
            return "paired pooled" if self.pooled else "paired"
        return "pooled" if self.pooled else "welch"


@dataclasses.dataclass(frozen=True)
class Spreads:
    """The pooled spreads of rows; None where too few rows have several seeds.

    Attributes:
        paired: over the rows that share their batches with the reference row.
        unpaired: over all rows.
    """

    paired: Spread | None
    unpaired: Spread | None


def find_differences(reference: Sample, others: Sequence[Sample]) -> tuple[list[Difference | None], Spreads]:
    """Compare rows with a reference row.

    A row that has at least two seeds and its batches in common with the reference is paired with it by seed; any other
    is compared by Welch's t-test. With at least three rows whose spreads agree, the spread is pooled over them.

    Returns:
        The difference of each row, None for fewer than two seeds; and the pooled spreads.
    """
    rows = [reference, *others]
    spreads = Spreads(paired_spread([row for row in rows if _shares(row, reference)]), pooled_spread(rows))
    return [_difference(reference, row, spreads) for row in others], spreads


def pooled_spread(rows: Sequence[Sample]) -> Spread | None:
    """Pool the variance within rows; None if no row has several seeds.

    Rows without any spread, as of a deterministic model, are left out.
    """
    groups = [list(row.values.values()) for row in rows if _varies(row)]
    freedom = sum(len(values) - 1 for values in groups)
    if not freedom:
        return None
    means = map(statistics.fmean, groups)
    squares = math.fsum((value - mean) ** 2 for values, mean in zip(groups, means, strict=True) for value in values)
    return Spread(math.sqrt(squares / freedom), freedom, len(groups), brown_forsythe_p_value(groups), is_paired=False)


def paired_spread(rows: Sequence[Sample]) -> Spread | None:
    """Pool the variance that remains after the effects of rows and of seeds are removed (a two-way layout).

    The effects are fitted by least squares, as not every row needs to have every seed.

    Args:
        rows: that share their batches.

    Returns:
        None if fewer than two rows share two seeds. Rows without any spread are left out.
    """
    import numpy as np

    rows = [row for row in rows if _varies(row)]
    seeds = {seed: at for at, seed in enumerate(dict.fromkeys(seed for row in rows for seed in row.values))}
    freedom = sum(len(row.values) for row in rows) - len(rows) - len(seeds) + _n_components(rows)
    if len(rows) < 2 or freedom < 1:
        return None
    row_n = np.array([at for at, row in enumerate(rows) for _ in row.values])
    seed_n = np.array([seeds[seed] for row in rows for seed in row.values])
    value_n = np.array([value for row in rows for value in row.values.values()])
    residual_n, of_seed_n = value_n.copy(), np.zeros_like(value_n)
    limit = TOLERANCE * np.abs(value_n).max()
    for _ in range(MAX_ITERATIONS):
        residual_n -= (np.bincount(row_n, residual_n) / np.bincount(row_n))[row_n]
        change_n = (np.bincount(seed_n, residual_n) / np.bincount(seed_n))[seed_n]
        residual_n -= change_n
        of_seed_n += change_n
        if np.abs(change_n).max() <= limit:
            break
    groups = [(value_n - of_seed_n)[row_n == at].tolist() for at in range(len(rows))]
    p_value = brown_forsythe_p_value(groups) if len(rows) >= MIN_POOLED else 1.0
    return Spread(math.sqrt(float((residual_n**2).sum()) / freedom), freedom, len(rows), p_value, is_paired=True)


def _difference(reference: Sample, row: Sample, spreads: Spreads) -> Difference | None:
    shared = [seed for seed in reference.values if seed in row.values] if _shares(row, reference) else []
    if len(shared) >= 2:
        return _paired(reference, row, shared, spreads.paired)
    counts = len(row.values), len(reference.values)
    if min(counts) < 2:
        return None
    values = [list(sample.values.values()) for sample in (row, reference)]
    effect = statistics.fmean(values[0]) - statistics.fmean(values[1])
    pooled = spreads.unpaired
    if _is_usable(pooled, (row, reference)):
        spread, freedom = pooled.value, float(pooled.freedom)
        error = spread * math.sqrt(1 / counts[0] + 1 / counts[1])
    else:
        welch = welch_error(*values)
        if welch is None:
            return None
        (error, freedom), pooled = welch, None
        spread = error / math.sqrt(1 / counts[0] + 1 / counts[1])
    interval, p_value = t_interval(error, freedom), t_p_value(effect, error, freedom)
    return Difference(effect, interval, p_value, freedom, spread, min(counts), pooled=pooled)


def _paired(reference: Sample, row: Sample, shared: Sequence[Any], spread: Spread | None) -> Difference | None:
    n = len(shared)
    per_seed = [row.values[seed] - reference.values[seed] for seed in shared]
    effect = statistics.fmean(per_seed)
    if _is_usable(spread, (row, reference)):
        error, freedom, pooled = spread.value * math.sqrt(2 / n), float(spread.freedom), spread
    else:
        own_error = mean_error(per_seed)
        if own_error is None:
            return None
        error, freedom, pooled = own_error, float(n - 1), None
    return Difference(
        effect,
        t_interval(error, freedom),
        t_p_value(effect, error, freedom),
        freedom,
        spread=error * math.sqrt(n / 2),
        n_seeds=n,
        n_unpaired=len(set(row.values) ^ set(reference.values)),
        is_paired=True,
        pooled=pooled,
    )


def _is_usable(spread: Spread | None, rows: Sequence[Sample]) -> TypeGuard[Spread]:
    """Return whether a spread describes these rows, too: not those without any, as of a deterministic model."""
    return spread is not None and spread.n_rows >= MIN_POOLED and spread.agrees and all(map(_varies, rows))


def _shares(row: Sample, reference: Sample) -> bool:
    return row.batches is not None and row.batches == reference.batches


def _varies(row: Sample) -> bool:
    return len(set(row.values.values())) > 1


def _n_components(rows: Sequence[Sample]) -> int:
    """Count the groups of rows that are connected by common seeds."""
    components: list[set[Any]] = []
    for row in rows:
        touched = [seeds for seeds in components if not seeds.isdisjoint(row.values)]
        components = [seeds for seeds in components if seeds.isdisjoint(row.values)]
        components.append(set(row.values).union(*touched))
    return len(components)
