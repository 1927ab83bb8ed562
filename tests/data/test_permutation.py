import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.data.permutation import mix, permute


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_permute_handles_sizes_up_to_2_to_62(n: int, key: int, data: st.DataObject) -> None:
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    permuted = permute(positions, n, key)
    assert len(set(permuted.tolist())) == len(positions)
    assert ((permuted >= 0) & (permuted < n)).all()
    assert permuted[0] == permute(positions[:1], n, key)[0]


def test_permute_accepts_one_key_per_position() -> None:
    keys = mix(3, np.array([0, 0, 1, 1]))
    permuted = permute(np.array([4, 5, 4, 5]), 100, keys)
    assert permuted[:2].tolist() == permute(np.array([4, 5]), 100, keys[0]).tolist()
    assert permuted[2:].tolist() == permute(np.array([4, 5]), 100, keys[2]).tolist()


@pytest.mark.parametrize(("n", "n_permutations"), [(3, 6), (4, 24), (5, 120)])
def test_permute_draws_small_permutations_uniformly(n: int, n_permutations: int) -> None:
    keys = np.repeat(mix(7, np.arange(50 * n_permutations)), n)
    permutations = permute(np.tile(np.arange(n), 50 * n_permutations), n, keys).reshape(-1, n)
    counts = collections.Counter(map(tuple, permutations.tolist()))
    assert len(counts) == n_permutations
    # 50 of each are expected with a standard deviation of 7; the limit is 5 deviations.
    assert all(abs(count - 50) < 5 * 7.1 for count in counts.values())


def test_permute_leaves_no_correlation() -> None:
    n = 100_000
    permuted = permute(np.arange(n), n, mix(1))
    # Correlation has a standard deviation of 1 / sqrt(n), 0.003.
    assert abs(np.corrcoef(np.arange(n), permuted)[0, 1]) < 0.02
    assert abs(np.corrcoef(permuted[:-1], permuted[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(permuted)) == 1).mean() < 0.001
