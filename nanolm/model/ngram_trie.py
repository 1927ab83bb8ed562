"""The n-grams of a text, counted in one pass, as a trie in two arrays.

Node 0 is the empty gram. Node i > 0 is the gram of node keys[i - 1] // V with the token keys[i - 1] % V behind it, and
it was counted counts[i - 1] times. Nodes are in order of their length, then of their keys: keys ascend over the whole
trie, the children of a node lie side by side, and one binary search finds a child at any depth. A key is a node times
V at most, so that it fits int64 whatever V and the order are.
"""

from __future__ import annotations

import itertools

import numpy as np

from nanolm.data.tokens.stream import Tokens, chunks


def count_grams(
    tokens: Tokens, vocab_size: int, order: int, chunk_length: int = 2**22
) -> tuple[np.ndarray, np.ndarray]:
    """Counts every gram of 1 to `order` tokens. Beside the trie it needs memory for a chunk of the tokens.

    Returns:
        keys and counts, int64, of the nodes from 1 on.
    """
    # A level a length, its contexts numbered within the level below, until all grams are known.
    levels = [(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)) for _ in range(order)]
    overlap = max(0, min(order, len(tokens)) - 1)
    for number, chunk in enumerate(chunks(tokens, chunk_length, overlap)):
        levels = _with_chunk(levels, chunk.astype(np.int64), vocab_size, overlap if number else 0)
    keys, first = [], 0
    for depth, (level, _) in enumerate(levels):
        keys.append(first * vocab_size + level)
        first += len(levels[depth - 1][0]) if depth else 1
    return np.concatenate(keys), np.concatenate([counts for _, counts in levels])


def _with_chunk(
    levels: list[tuple[np.ndarray, np.ndarray]], chunk: np.ndarray, vocab_size: int, n_seen: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The levels with a chunk's grams in them; those within its first `n_seen` tokens have been counted before."""
    merged = []
    # The gram, one token shorter, that ends before each token; and where the old ones of that level have moved to.
    contexts, moved = np.zeros(len(chunk) + 1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for depth, (keys, counts) in enumerate(levels, start=1):
        new_keys, new_places = np.unique(contexts[:-1] * vocab_size + chunk[depth - 1 :], return_inverse=True)
        old_keys = moved[keys // vocab_size] * vocab_size + keys % vocab_size
        all_keys, places = np.unique(np.concatenate([old_keys, new_keys]), return_inverse=True)
        moved, contexts = places[: len(keys)], places[len(keys) :][new_places]
        all_counts = np.bincount(contexts[max(0, n_seen - depth + 1) :], minlength=len(all_keys))
        all_counts[moved] += counts
        merged.append((all_keys, all_counts))
    return merged


def level_ends(keys: np.ndarray, vocab_size: int, order: int) -> list[int]:
    """Where each length ends among the nodes: length k is the nodes from ends[k - 1] to ends[k].

    Raises:
        ValueError: these keys are no trie of that order over that vocabulary.
    """
    ends = [1]
    for _ in range(order):
        ends.append(1 + int(np.searchsorted(keys, ends[-1] * vocab_size)))
    is_sorted = not len(keys) or (keys[0] >= 0 and bool(np.all(keys[1:] > keys[:-1])))
    if not is_sorted or ends[-1] != len(keys) + 1:
        raise ValueError(f"{len(keys):,} keys are not the n-grams of order {order} over {vocab_size:,} tokens")
    return ends


def continuation_counts(keys: np.ndarray, ends: list[int], vocab_size: int) -> np.ndarray:
    """Before how many different tokens each gram was seen; 0 for those of the greatest length (Kneser and Ney 1995).

    Raises:
        ValueError: a gram is there, and the gram that it ends with is not.
    """
    # The node of each gram without its first token.
    suffixes = np.zeros(len(keys) + 1, dtype=np.int64)
    for begin, end in itertools.pairwise(ends[1:]):
        contexts, last = np.divmod(keys[begin - 1 : end - 1], vocab_size)
        wanted = suffixes[contexts] * vocab_size + last
        places = np.searchsorted(keys, wanted)
        if not np.array_equal(keys[places], wanted):
            raise ValueError("there are n-grams whose ends are not counted")
        suffixes[begin:end] = 1 + places
    return np.bincount(suffixes[ends[1] :], minlength=len(keys) + 1)[1:]
