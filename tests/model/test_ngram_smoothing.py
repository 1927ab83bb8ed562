import numpy as np
import pytest

from nanolm.model.ngram_smoothing import DEFAULT_DISCOUNT, absolute_discounting, add_k, kneser_ney
from nanolm.model.ngram_trie import count_ngrams, level_ends

# Counts: a 3, b 2, ab 2, ba 2.
TEXT = np.array([0, 1, 0, 1, 0], dtype=np.uint16)


def test_add_k_shares_and_rests_sum_to_one() -> None:
    keys, counts = count_ngrams(TEXT, 2, 2)
    shares, rests = add_k(keys, counts, 2, 0.5)
    assert shares[0].tolist() == pytest.approx([3 / 6, 2 / 6, 2 / 3, 2 / 3])
    assert rests[0, :3].tolist() == pytest.approx([1 / 6, 1 / 3, 1 / 3])
    assert not shares[1].any()
    assert (rests[1] == 1).all()


def test_absolute_discounting_estimates_the_discount_from_counts_of_counts() -> None:
    text = np.array([0, 0, 1, 1, 2, 3, 4], dtype=np.uint16)  # n1 = 3, n2 = 2: d = 3 / 7
    keys, counts = count_ngrams(text, 5, 1)
    shares, rests = absolute_discounting(keys, counts, level_ends(keys, 5, 1), 5)
    assert shares.tolist() == pytest.approx([(2 - 3 / 7) / 7] * 2 + [(1 - 3 / 7) / 7] * 3)
    assert rests[0] == pytest.approx(5 * 3 / 7 / 7)


def test_absolute_discounting_has_a_default_discount() -> None:
    keys, counts = count_ngrams(TEXT, 2, 1)
    shares, _ = absolute_discounting(keys, counts, level_ends(keys, 2, 1), 2)
    assert shares.tolist() == pytest.approx([(3 - DEFAULT_DISCOUNT) / 5, (2 - DEFAULT_DISCOUNT) / 5])


def test_kneser_ney_backs_off_to_continuation_counts() -> None:
    keys, counts = count_ngrams(TEXT, 2, 2)
    shares, rests = kneser_ney(keys, counts, level_ends(keys, 2, 2), 2)
    # Each token is preceded by one distinct token.
    assert shares[1, :2].tolist() == pytest.approx([(1 - DEFAULT_DISCOUNT) / 2] * 2)
    assert rests[1, 0] == pytest.approx(2 * DEFAULT_DISCOUNT / 2)
