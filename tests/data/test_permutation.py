import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.data.permutation import mix, permute


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_every_place_is_taken_once(n: int, key: int) -> None:
    assert sorted(permute(np.arange(n), n, key).tolist()) == list(range(n))


@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.data())
def test_long_orders_are_never_held(n: int, key: int, data: st.DataObject) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    sent = permute(places, n, key)
    assert len(set(sent.tolist())) == len(places)
    assert ((sent >= 0) & (sent < n)).all()
    assert sent[0] == permute(places[:1], n, key)[0]


def test_each_place_may_have_a_key_of_its_own() -> None:
    keys = mix(3, np.array([0, 0, 1, 1]))
    sent = permute(np.array([4, 5, 4, 5]), 100, keys)
    assert sent[:2].tolist() == permute(np.array([4, 5]), 100, keys[0]).tolist()
    assert sent[2:].tolist() == permute(np.array([4, 5]), 100, keys[2]).tolist()


@pytest.mark.parametrize(("n", "n_orders"), [(3, 6), (4, 24), (5, 120)])
def test_small_orders_are_all_about_equally_likely(n: int, n_orders: int) -> None:
    keys = np.repeat(mix(7, np.arange(50 * n_orders)), n)
    orders = permute(np.tile(np.arange(n), 50 * n_orders), n, keys).reshape(-1, n)
    counts = collections.Counter(map(tuple, orders.tolist()))
    assert len(counts) == n_orders
    # 50 of each are expected, standard deviation 7; 5 of them is beyond chance.
    assert all(abs(count - 50) < 5 * 7.1 for count in counts.values())


def test_a_long_order_keeps_no_trace_of_the_old_one() -> None:
    n = 100_000
    sent = permute(np.arange(n), n, mix(1))
    # Correlation has a standard deviation of 1 / sqrt(n), 0.003.
    assert abs(np.corrcoef(np.arange(n), sent)[0, 1]) < 0.02
    assert abs(np.corrcoef(sent[:-1], sent[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(sent)) == 1).mean() < 0.001
