import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.data.tokens.stream import Shards
from nanolm.model.ngram_trie import continuation_counts, count_ngrams, level_ends


def ngrams_of(keys: np.ndarray, vocab_size: int) -> list[tuple[int, ...]]:
    """Return the n-gram of each key."""
    ngrams: list[tuple[int, ...]] = [()]
    for key in keys.tolist():
        ngrams.append((*ngrams[key // vocab_size], key % vocab_size))
    return ngrams[1:]


def count_by_slices(text: list[int], order: int) -> Counter[tuple[int, ...]]:
    lengths = range(1, order + 1)
    return Counter(tuple(text[at : at + n]) for n in lengths for at in range(len(text) - n + 1))


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([4, 7, 50_257]),
)
def test_counts_are_independent_of_the_chunk_length(
    text: list[int], order: int, chunk_length: int, vocab_size: int
) -> None:
    keys, counts = count_ngrams(np.array(text, dtype=np.uint16), vocab_size, order, chunk_length)
    ngrams = ngrams_of(keys, vocab_size)
    assert dict(zip(ngrams, counts.tolist(), strict=True)) == count_by_slices(text, order)
    assert ngrams == sorted(ngrams, key=lambda ngram: (len(ngram), ngram))
    assert np.all(np.diff(keys) > 0)
    ends = level_ends(keys, vocab_size, order)
    assert [len(ngram) for ngram in ngrams] == [
        n + 1 for n, (begin, end) in enumerate(itertools.pairwise(ends)) for _ in range(begin, end)
    ]


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5))
def test_continuation_counts_are_numbers_of_preceding_tokens(text: list[int], order: int) -> None:
    keys, _ = count_ngrams(np.array(text, dtype=np.int64), 3, order)
    found = continuation_counts(keys, level_ends(keys, 3, order), 3)
    counts = count_by_slices(text, order)
    assert found.tolist() == [sum((token, *ngram) in counts for token in range(3)) for ngram in ngrams_of(keys, 3)]


def test_counts_of_shards_equal_those_of_the_whole() -> None:
    text = np.random.default_rng(0).integers(0, 9, 100).astype(np.uint16)
    shards = Shards([text[:33], text[33:34], text[34:]])
    for whole, sharded in zip(count_ngrams(text, 9, 4), count_ngrams(shards, 9, 4, chunk_length=10), strict=True):
        assert np.array_equal(whole, sharded)


@pytest.mark.parametrize("keys", [[3, 3], [3, 1], [-1], [0, 5_000]])
def test_level_ends_rejects_keys_that_are_not_a_trie(keys: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"{len(keys)} keys are not the n-grams of order 2 over 4 tokens"):
        level_ends(np.array(keys), 4, 2)
