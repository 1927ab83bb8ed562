"""N-gram counts of a text, stored as a trie in two sorted arrays.

Node 0 is the empty n-gram. Node i > 0 is the n-gram of node keys[i - 1] // V followed by token keys[i - 1] % V, which
occurs counts[i - 1] times in the text. Nodes are sorted by length, then by key: keys ascend over the whole trie, the
children of a node are contiguous, and one binary search finds a child at any depth. A key is less than the number of
nodes times V, so that it fits int64 for any V and order.
"""

from __future__ import annotations

import itertools

import numpy as np

from nanolm.data.tokens.stream import Tokens, chunks


def count_ngrams(
    tokens: Tokens, vocab_size: int, order: int, chunk_length: int = 2**22
) -> tuple[np.ndarray, np.ndarray]:
    """Count all n-grams of 1 to `order` tokens, chunk by chunk, so that memory holds the trie and one chunk.

    Returns:
        keys and counts of the nodes from 1 on, int64.
    """
    # One level per length. Until all n-grams are known, contexts are numbered within the level above.
    levels = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) for _ in range(order)]
    overlap = max(0, min(order, len(tokens)) - 1)
    for number, chunk in enumerate(chunks(tokens, chunk_length, overlap)):
        levels = _add_chunk(levels, chunk.astype(np.int64), vocab_size, overlap if number else 0)
    keys, first = [], 0
    for depth, (level, _) in enumerate(levels):
        keys.append(first * vocab_size + level)
        first += len(levels[depth - 1][0]) if depth else 1
    return np.concatenate(keys), np.concatenate([counts for _, counts in levels])


def _add_chunk(
    levels: list[tuple[np.ndarray, np.ndarray]], chunk: np.ndarray, vocab_size: int, n_counted: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the levels with the n-grams of a chunk; those within its first `n_counted` tokens were counted before."""
    merged = []
    # The n-gram, one token shorter, that ends before each token; and the new numbers of the old n-grams of that level.
    contexts, new_number = np.zeros(len(chunk) + 1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for depth, (keys, counts) in enumerate(levels, start=1):
        chunk_keys, chunk_index = np.unique(contexts[:-1] * vocab_size + chunk[depth - 1 :], return_inverse=True)
        old_keys = new_number[keys // vocab_size] * vocab_size + keys % vocab_size
        all_keys, index = np.unique(np.concatenate([old_keys, chunk_keys]), return_inverse=True)
        new_number, contexts = index[: len(keys)], index[len(keys) :][chunk_index]
        all_counts = np.bincount(contexts[max(0, n_counted - depth + 1) :], minlength=len(all_keys))
        all_counts[new_number] += counts
        merged.append((all_keys, all_counts))
    return merged


def level_ends(keys: np.ndarray, vocab_size: int, order: int) -> list[int]:
    """Find where each length ends: n-grams of length k are the nodes from ends[k - 1] to ends[k] - 1.

    Raises:
        ValueError: the keys are not a trie of this order and vocabulary.
    """
    ends = [1]
    for _ in range(order):
        ends.append(1 + int(np.searchsorted(keys, ends[-1] * vocab_size)))
    is_sorted = not len(keys) or (keys[0] >= 0 and bool(np.all(keys[1:] > keys[:-1])))
    if not is_sorted or ends[-1] != len(keys) + 1:
        raise ValueError(f"{len(keys):,} keys are not the n-grams of order {order} over {vocab_size:,} tokens")
    return ends


def continuation_counts(keys: np.ndarray, ends: list[int], vocab_size: int) -> np.ndarray:
    """Count the distinct tokens that precede each n-gram; 0 for those of the largest length (Kneser and Ney 1995).

    Raises:
        ValueError: the trie has an n-gram without its suffix.
    """
    # The node of each n-gram without its first token.
    suffixes = np.zeros(len(keys) + 1, dtype=np.int64)
    for begin, end in itertools.pairwise(ends[1:]):
        contexts, last = np.divmod(keys[begin - 1 : end - 1], vocab_size)
        suffix_keys = suffixes[contexts] * vocab_size + last
        index = np.searchsorted(keys, suffix_keys)
        if not np.array_equal(keys[index], suffix_keys):
            raise ValueError("the suffix of an n-gram is missing")
        suffixes[begin:end] = 1 + index
    return np.bincount(suffixes[ends[1] :], minlength=len(keys) + 1)[1:]
