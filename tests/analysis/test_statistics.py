import math
import random
import statistics

import hypothesis
import pytest
from hypothesis import strategies
from scipy import stats

from nanolm.analysis.statistics import _sqrt, _variance, confidence_interval, holm_adjust, welch_p_value

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
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert welch_p_value(first, second) == pytest.approx(expected) == welch_p_value(second, first)
    assert welch_p_value(first, [2.0]) is None


def test_p_value_without_variance_is_zero_or_one() -> None:
    assert welch_p_value([2.0, 2.0], [2.1, 2.1]) == 0.0
    assert welch_p_value([2.0, 2.0], [2.0, 2.0, 2.0]) == 1.0


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
