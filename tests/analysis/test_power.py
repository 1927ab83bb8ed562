import numpy as np
import pytest
from scipy import stats

from nanolm.analysis.power import power, seeds_needed


def test_power_is_that_of_a_noncentral_t() -> None:
    critical = stats.t.ppf(0.975, 8)
    expected = stats.nct.sf(critical, 8, 1.5 * np.sqrt(5 / 2)) + stats.nct.cdf(-critical, 8, 1.5 * np.sqrt(5 / 2))
    assert power(1.5, 1.0, 5, is_paired=False) == pytest.approx(expected)
    assert power(1000.0, 1e-3, 2, is_paired=True) == 1.0
    assert (power(0.1, 0.0, 2, is_paired=True), power(0.0, 0.0, 2, is_paired=True)) == (1.0, 0.0)


def test_needed_seeds_are_the_smallest_with_enough_power() -> None:
    needed = seeds_needed(1.0, 1.0, is_paired=False)
    # Cohen 1988, table 2.4.1: d = 1.0, 80% power, two-sided 5%.
    assert needed == 17
    assert power(1.0, 1.0, 17, is_paired=False) >= 0.8 > power(1.0, 1.0, 16, is_paired=False)


def test_needed_seeds_are_limited() -> None:
    assert seeds_needed(1e-6, 1.0, is_paired=True) is None
    assert seeds_needed(0.0, 1.0, is_paired=False) is None
    assert seeds_needed(1.0, 0.0, is_paired=True) == 2


def test_more_rows_need_more_seeds_but_share_their_spread() -> None:
    alone, pooled = (seeds_needed(2.0, 1.0, is_paired=True, n_pooled=n) for n in (2, 40))
    chosen = seeds_needed(2.0, 1.0, is_paired=True, n_pooled=40, n_rows=40)
    assert alone is not None
    assert pooled is not None
    assert chosen is not None
    assert pooled < alone
    assert pooled < chosen


@pytest.mark.slow
@pytest.mark.parametrize(("difference", "is_paired"), [(1.0, False), (1.5, False), (1.0, True), (2.0, True)])
def test_needed_seeds_agree_with_a_simulation(difference: float, is_paired: bool) -> None:
    """The number is within one seed of the smallest with which 80% of simulated studies find the difference."""
    noise = np.random.default_rng(0)
    needed = seeds_needed(difference, 1.0, is_paired=is_paired)
    assert needed is not None
    for n_seeds, is_enough in ((needed - 2, False), (needed + 1, True)):
        first, second = noise.normal(size=(2, 20_000, n_seeds))
        of_seed = 3 * noise.normal(size=(20_000, n_seeds)) if is_paired else 0.0
        test = stats.ttest_rel if is_paired else stats.ttest_ind
        found = test(first + of_seed, second + difference + of_seed, axis=1).pvalue < 0.05
        assert bool(np.mean(found) >= 0.8) is is_enough
