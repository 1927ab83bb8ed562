import math
import random
import statistics

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from scipy import stats

from nanolm.analysis.statistics import (
    _sqrt,
    _variance,
    brown_forsythe_p_value,
    confidence_interval,
    holm_adjust,
    n_tests_of_best,
    studentized_range_tail,
    t_interval,
    t_p_value,
    welch_error,
)

GPT = {"model": "gpt", "dataset": "tiny_shakespeare", "tokenizer": "char", "size": "small"}


def test_confidence_interval_is_students_t() -> None:
    values = [2.61, 2.64, 2.66, 2.71]
    low, high = stats.t.interval(0.95, 3, statistics.fmean(values), stats.sem(values))
    assert confidence_interval(values) == pytest.approx((high - low) / 2)
    # From a table of Student's t: 12.706 at 1 degree of freedom.
    assert confidence_interval([1.0, 2.0]) == pytest.approx(12.706 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)
    assert confidence_interval([1.0]) is None


def test_holm_matches_a_worked_example() -> None:
    # Worked by hand: 0.01 * 4, then 0.02 * 3, then 0.03 * 2 which may not fall under the one before, then 0.9.
    assert holm_adjust([0.9, 0.01, 0.03, 0.02]) == pytest.approx([0.9, 0.04, 0.06, 0.06])
    assert holm_adjust([0.7, 0.6]) == [1.0, 1.0]
    assert holm_adjust([]) == []


@hypothesis.given(strategies.lists(strategies.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm_adjust(p_values)
    assert all(before <= after <= 1 for before, after in zip(p_values, adjusted, strict=True))
    assert [adjusted[at] for at in sorted(range(len(p_values)), key=p_values.__getitem__)] == sorted(adjusted)
    assert min(adjusted) == min(1.0, len(p_values) * min(p_values))


def test_p_value_is_that_of_welchs_test() -> None:
    first, second = [2.61, 2.64, 2.66], [2.70, 2.65, 2.80, 2.72]
    expected = stats.ttest_ind(first, second, equal_var=False)
    error, freedom = welch_error(first, second) or (0.0, 0.0)
    assert freedom == pytest.approx(expected.df)
    effect = statistics.fmean(first) - statistics.fmean(second)
    assert t_p_value(effect, error, freedom) == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval()
    assert 2 * t_interval(error, freedom) == pytest.approx(high - low)
    assert welch_error(first, [2.0]) is None


def test_p_value_without_variance_is_zero_or_one() -> None:
    assert welch_error([2.0, 2.0], [2.1, 2.1, 2.1]) == (0.0, 3.0)
    assert (t_p_value(0.1, 0.0, 3.0), t_p_value(0.0, 0.0, 3.0)) == (0.0, 1.0)


@pytest.mark.parametrize("n_groups", [2, 5])
def test_brown_forsythe_is_that_of_scipy(n_groups: int) -> None:
    noise = np.random.default_rng(0)
    groups = [noise.normal(scale=1 + n, size=3 + n % 3).tolist() for n in range(n_groups)]
    assert brown_forsythe_p_value(groups) == pytest.approx(stats.levene(*groups, center="median").pvalue)
    assert brown_forsythe_p_value([[1.0, 1.0], [2.0, 2.0]]) == 1.0
    assert brown_forsythe_p_value([[1.0, 2.0, 3.0]]) == 1.0


def test_holm_of_more_tests_than_p_values() -> None:
    assert holm_adjust([0.01, 0.02], [6.0, 6.0]) == pytest.approx([0.06, 0.10])


@pytest.mark.parametrize(("n_rows", "freedom"), [(3, 4.0), (12, 22.0), (40, 78.0)])
def test_number_of_tests_is_that_of_the_studentized_range(n_rows: int, freedom: float) -> None:
    for value in (2.0, 4.5):
        expected = stats.studentized_range.sf(value, n_rows, freedom)
        assert studentized_range_tail(value, n_rows, freedom) == pytest.approx(expected, abs=1e-4)
    critical = stats.studentized_range.ppf(0.95, n_rows, freedom) / math.sqrt(2)
    p_value = 2 * stats.t.sf(critical, freedom)
    assert p_value * n_tests_of_best(p_value, freedom, n_rows) == pytest.approx(0.05, abs=1e-4)
    assert n_tests_of_best(0.04, freedom, 2) == 1.0


def test_deviations_are_those_of_the_statistics_module() -> None:
    noise = random.Random(0)
    for _ in range(500):
        n, scale = noise.randint(2, 9), 10.0 ** noise.randint(-30, 30)
        values = [
            noise.choice([noise.gauss(3, 1e-3), noise.random() * scale, noise.randint(0, 2**63)]) for _ in range(n)
        ]
        numerator, denominator = _variance(values)
        # The variance of integers may be one.
        assert numerator / denominator == float(statistics.variance(values))
        assert _sqrt(numerator, denominator) == statistics.stdev(values)
    assert confidence_interval([1.5, 1.5, 1.5]) == 0.0
    assert confidence_interval([1.0, math.inf]) is None
