"""Smoothing of n-gram counts.

Functions return two arrays, as `Ngram` stores them: the share that each n-gram contributes to the probability of its
last token, and the rest that each node leaves to the next shorter context. Row 0 is for the longest context of a
position, row 1 for contexts that are backed off to.
"""

from __future__ import annotations

import itertools

import numpy as np

from nanolm.model.ngram_trie import continuation_counts

# The discount of a length without n-grams of count 1 or without any of count 2, where the estimate is 0 or 1.
DEFAULT_DISCOUNT = 0.5


def add_k(keys: np.ndarray, counts: np.ndarray, vocab_size: int, k: float) -> tuple[np.ndarray, np.ndarray]:
    """P(w | h) = (c(h w) + k) / (c(h .) + k V) (Jurafsky and Martin, Speech and Language Processing, section 3.6).

    Shorter contexts have no share: the rest k V / (c(h .) + k V) is given to the uniform distribution.

    Returns:
        shares (2 x number of n-grams) and rests (2 x number of nodes).
    """
    contexts = keys // vocab_size
    totals = np.bincount(contexts, counts, minlength=len(keys) + 1)
    shares, rests = counts / (totals[contexts] + k * vocab_size), k * vocab_size / (totals + k * vocab_size)
    return np.stack([shares, np.zeros_like(shares)]), np.stack([rests, np.ones_like(rests)])


def kneser_ney(keys: np.ndarray, counts: np.ndarray, ends: list[int], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Interpolated Kneser-Ney smoothing (Chen and Goodman 1999, section 2.7).

    P(w | h) = max(c(h w) - d, 0) / c(h .) + (d / c(h .)) |{w: c(h w) > 0}| P(w | h without its first token), where c
    counts occurrences for the longest context and distinct preceding tokens for shorter ones. Unigrams are interpolated
    with the uniform distribution.

    Returns:
        shares (2 x number of n-grams) and rests (2 x number of nodes).
    """
    preceded = continuation_counts(keys, ends, vocab_size)
    shares, rests = zip(*(absolute_discounting(keys, c, ends, vocab_size) for c in (counts, preceded)), strict=True)
    return np.stack(shares), np.stack(rests)


def estimate_discounts(counts: np.ndarray, ends: list[int]) -> np.ndarray:
    """Return the discount d of each n-gram, which depends on its length only."""
    discounts = np.zeros(len(counts))
    for begin, end in itertools.pairwise(ends):
        of_length = counts[begin - 1 : end - 1]
        n1, n2 = np.count_nonzero(of_length == 1), np.count_nonzero(of_length == 2)
        discounts[begin - 1 : end - 1] = n1 / (n1 + 2 * n2) if n1 and n2 else DEFAULT_DISCOUNT
    return discounts


def absolute_discounting(
    keys: np.ndarray, counts: np.ndarray, ends: list[int], vocab_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Subtract d = n1 / (n1 + 2 n2) from every count, where n1 and n2 n-grams of that length have counts 1 and 2.

    (Ney, Essen and Kneser 1994; Chen and Goodman 1999, section 2.7.)

    Returns:
        The discounted count of each n-gram divided by its context's count; and the share subtracted in each node, which
        is 1 for a node without children.
    """
    discounts = estimate_discounts(counts, ends)
    contexts = keys // vocab_size
    totals = np.bincount(contexts, counts, minlength=len(keys) + 1)
    # The n-gram at the beginning of the text has no preceding token: its count is 0, and its context's may be.
    divisors = np.maximum(totals, 1)
    shares = np.maximum(counts - discounts, 0) / divisors[contexts]
    subtracted = np.bincount(contexts, np.minimum(counts, discounts), minlength=len(keys) + 1)
    return shares, np.where(totals > 0, subtracted / divisors, 1.0)
