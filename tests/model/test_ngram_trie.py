import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.data.tokens.stream import Shards
from nanolm.model.ngram_trie import continuation_counts, count_grams, level_ends


def spelled(keys: np.ndarray, vocab_size: int) -> list[tuple[int, ...]]:
    """The grams behind the keys."""
    grams: list[tuple[int, ...]] = [()]
    for key in keys.tolist():
        grams.append((*grams[key // vocab_size], key % vocab_size))
    return grams[1:]


def counted_slowly(text: list[int], order: int) -> Counter[tuple[int, ...]]:
    lengths = range(1, order + 1)
    return Counter(tuple(text[at : at + n]) for n in lengths for at in range(len(text) - n + 1))


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([4, 7, 50_257]),
)
def test_chunks_of_any_length_count_what_the_whole_text_has(
    text: list[int], order: int, chunk_length: int, vocab_size: int
) -> None:
    keys, counts = count_grams(np.array(text, dtype=np.uint16), vocab_size, order, chunk_length)
    grams = spelled(keys, vocab_size)
    assert dict(zip(grams, counts.tolist(), strict=True)) == counted_slowly(text, order)
    assert grams == sorted(grams, key=lambda gram: (len(gram), gram))
    assert np.all(np.diff(keys) > 0)
    ends = level_ends(keys, vocab_size, order)
    assert [len(gram) for gram in grams] == [
        n + 1 for n, (begin, end) in enumerate(itertools.pairwise(ends)) for _ in range(begin, end)
    ]


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 5))
def test_continuations_are_the_tokens_before(text: list[int], order: int) -> None:
    keys, _ = count_grams(np.array(text, dtype=np.int64), 3, order)
    followed = continuation_counts(keys, level_ends(keys, 3, order), 3)
    longer = counted_slowly(text, order)
    assert followed.tolist() == [sum((token, *gram) in longer for token in range(3)) for gram in spelled(keys, 3)]


def test_tokens_of_several_shards_read_as_one() -> None:
    text = np.random.default_rng(0).integers(0, 9, 100).astype(np.uint16)
    shards = Shards([text[:33], text[33:34], text[34:]])
    for whole, parted in zip(count_grams(text, 9, 4), count_grams(shards, 9, 4, chunk_length=10), strict=True):
        assert np.array_equal(whole, parted)


@pytest.mark.parametrize("keys", [[3, 3], [3, 1], [-1], [0, 5_000]])
def test_keys_that_are_no_trie_are_refused(keys: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"{len(keys)} keys are not the n-grams of order 2 over 4 tokens"):
        level_ends(np.array(keys), 4, 2)
