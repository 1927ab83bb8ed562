import numpy as np
import pytest
from scipy import stats

from nanolm.analysis.differences import Sample, find_differences, paired_spread, pooled_spread
from nanolm.analysis.statistics import holm_adjust, n_tests_of_best


def sample(values: list[float], batches: str | None = "same", first: int = 1) -> Sample:
    return Sample(dict(enumerate(values, start=first)), batches)


def study(noise: np.random.Generator, n_rows: int, n_seeds: int, effect: float, batches: str | None) -> list[Sample]:
    """Rows whose seeds share half of their variance; the first row has a lower loss by an effect."""
    of_seed = noise.normal(scale=np.sqrt(0.5), size=n_seeds) if batches else 0.0
    own = noise.normal(scale=np.sqrt(0.5) if batches else 1.0, size=(n_rows, n_seeds))
    rows = 3 + of_seed + own
    rows[1:] += effect
    return [sample(row.tolist(), batches) for row in rows]


def mean(row: Sample) -> float:
    return sum(row.values.values()) / len(row.values)


def p_values(rows: list[Sample]) -> list[float]:
    """The corrected p-values of all rows but the best."""
    best = min(rows, key=mean)
    found, _ = find_differences(best, [row for row in rows if row is not best])
    known = [one for one in found if one is not None]
    return holm_adjust(
        [one.p_value for one in known], [n_tests_of_best(one.p_value, one.freedom, len(rows)) for one in known]
    )


def welch_p_values(rows: list[Sample]) -> list[float]:
    """Welch's t-test against the best row with Holm's correction, without pairs or pooling."""
    values = [list(row.values.values()) for row in sorted(rows, key=mean)]
    return holm_adjust([stats.ttest_ind(values[0], other, equal_var=False).pvalue for other in values[1:]])


def test_two_rows_with_shared_seeds_are_paired() -> None:
    first, second = [2.61, 2.64, 2.66, 2.60], [2.62, 2.66, 2.67, 2.615]
    (found,), _ = find_differences(sample(first), [sample(second)])
    expected = stats.ttest_rel(second, first)
    assert found is not None
    assert (found.method, found.freedom, found.n_seeds) == ("paired", 3, 4)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval()
    assert (found.effect - found.interval, found.effect + found.interval) == pytest.approx((low, high))


@pytest.mark.parametrize(
    "other", [sample([2.7, 2.8, 2.75], first=4), sample([2.7, 2.8, 2.75], "other"), sample([2.7, 2.8, 2.75], None)]
)
def test_rows_without_pairs_are_compared_by_welch(other: Sample) -> None:
    first = sample([2.61, 2.64, 2.66, 2.60])
    (found,), _ = find_differences(first, [other])
    expected = stats.ttest_ind(list(other.values.values()), list(first.values.values()), equal_var=False)
    assert found is not None
    assert (found.method, found.n_seeds) == ("welch", 3)
    assert (found.p_value, found.freedom) == pytest.approx((expected.pvalue, expected.df))


def test_a_missing_seed_leaves_the_other_pairs() -> None:
    first, second = [2.61, 2.64, 2.66, 2.60], [2.62, 2.66, 2.67]
    (found,), _ = find_differences(sample(first), [sample(second)])
    assert found is not None
    assert (found.method, found.n_seeds, found.n_unpaired) == ("paired", 3, 1)
    assert found.p_value == pytest.approx(stats.ttest_rel(second, first[:3]).pvalue)


def test_spread_is_pooled_over_rows_that_agree() -> None:
    noise = np.random.default_rng(0)
    rows = noise.normal(size=(40, 3))
    (found, *_), spreads = find_differences(
        sample(rows[0].tolist(), None), [sample(row.tolist(), None) for row in rows[1:]]
    )
    assert found is not None
    assert spreads.unpaired is not None
    assert (found.method, found.freedom, spreads.paired) == ("pooled", 80, None)
    assert spreads.unpaired.value == pytest.approx(np.sqrt(rows.var(axis=1, ddof=1).mean()))
    assert spreads.unpaired.p_value == pytest.approx(stats.levene(*rows, center="median").pvalue)
    # The pooled test of three rows is that of scipy with all of their residuals.
    error = spreads.unpaired.value * np.sqrt(2 / 3)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.effect) / error, 80))


def test_paired_spread_is_that_of_a_two_way_layout() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4))
    residuals = rows - rows.mean(axis=1, keepdims=True) - rows.mean(axis=0) + rows.mean()
    found = paired_spread([sample(row.tolist()) for row in rows])
    assert found is not None
    assert (found.freedom, found.value) == (12, pytest.approx(np.sqrt((residuals**2).sum() / 12)))
    # With missing seeds it is that of least squares.
    cut = [sample(row.tolist()[: 4 - n % 2]) for n, row in enumerate(rows)]
    cells = [(n, seed - 1, value) for n, row in enumerate(cut) for seed, value in row.values.items()]
    design = np.array([[n == at for at in range(5)] + [seed == at for at in range(4)] for n, seed, _ in cells], float)
    values = np.array([value for *_, value in cells])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    unbalanced = paired_spread(cut)
    assert unbalanced is not None
    assert unbalanced.freedom == len(cells) - np.linalg.matrix_rank(design) == 10
    assert unbalanced.value == pytest.approx(np.sqrt(((values - fitted) ** 2).sum() / 10))


def test_spread_is_not_pooled_where_rows_differ_in_it() -> None:
    noise = np.random.default_rng(0)
    rows = [sample(noise.normal(scale=scale, size=8).tolist(), None) for scale in (1, 1, 1, 100)]
    found, spreads = find_differences(rows[0], rows[1:])
    assert spreads.unpaired is not None
    assert not spreads.unpaired.agrees
    assert [one.method for one in found if one] == ["welch"] * 3


def test_rows_without_spread_are_not_pooled() -> None:
    counted, noise = sample([2.0, 2.0, 2.0]), np.random.default_rng(0)
    rows = [sample(noise.normal(3, 0.1, size=3).tolist()) for _ in range(4)]
    found, spreads = find_differences(counted, rows)
    assert spreads.unpaired is not None
    assert spreads.unpaired.n_rows == 4
    assert [one.method for one in found if one] == ["paired"] * 4
    assert pooled_spread([counted]) is None
    (same,), _ = find_differences(counted, [counted])
    assert same is not None
    assert (same.effect, same.interval, same.p_value) == (0.0, 0.0, 1.0)


def test_one_seed_cannot_be_tested() -> None:
    found, spreads = find_differences(sample([2.0]), [sample([2.1]), sample([2.1, 2.2])])
    assert found == [None, None]
    assert spreads.paired is None


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [2, 6])
@pytest.mark.parametrize(("n_seeds", "batches"), [(3, "same"), (5, "same"), (3, None), (5, None)])
def test_false_alarm_rate_is_5_percent(n_rows: int, n_seeds: int, batches: str | None) -> None:
    """Over 2,000 studies without a difference, the rate of studies with any row apart is between 3% and 6%."""
    noise = np.random.default_rng(1)
    alarms = [min(p_values(study(noise, n_rows, n_seeds, 0.0, batches))) < 0.05 for _ in range(2000)]
    assert 0.03 <= np.mean(alarms) <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("n_rows", [3, 8])
def test_power_is_higher_than_that_of_welch(n_rows: int) -> None:
    """With a true difference of two standard deviations and three seeds."""
    noise = np.random.default_rng(2)
    studies = [study(noise, n_rows, 3, 2.0, "same") for _ in range(500)]
    found, before = ([np.mean(np.array(test(rows)) < 0.05) for rows in studies] for test in (p_values, welch_p_values))
    assert np.mean(found) >= 1.5 * np.mean(before)
