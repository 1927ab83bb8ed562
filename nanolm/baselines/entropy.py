"""Baselines by counting: the losses of unigram and bigram frequencies on the same text."""

from __future__ import annotations

import numpy as np

from nanolm.data.tokens.stream import Tokens, chunks


def unigram_loss(train: Tokens, heldout: Tokens, vocab_size: int) -> float:
    """Return the mean loss of held-out text under the token frequencies of the training text, in nats per token.

    One is added to every count. The first held-out token is not scored, as in every loss of nanolm.
    """
    counts_V = _counts(train, vocab_size) + 1
    scored_V = _counts(heldout[1:], vocab_size)
    return float(-(scored_V @ np.log(counts_V / counts_V.sum())) / scored_V.sum())


def bigram_loss(train: Tokens, heldout: Tokens, vocab_size: int) -> float:
    """Return the mean loss of held-out text under the pair counts of the training text, in nats per token.

    P(b | a) = (count(a, b) + 1) / (count(a, .) + V)   (Jurafsky and Martin, Speech and Language Processing, 3.6)
    """
    pairs, pair_counts = _pair_counts(train, vocab_size)
    first_counts_V = _counts(train[: len(train) - 1], vocab_size)
    scored, scored_counts = _pair_counts(heldout, vocab_size)
    at = np.minimum(np.searchsorted(pairs, scored), len(pairs) - 1)
    train_counts = np.where(pairs[at] == scored, pair_counts[at], 0)
    probability = (train_counts + 1) / (first_counts_V[scored // vocab_size] + vocab_size)
    return float(-(scored_counts @ np.log(probability)) / scored_counts.sum())


def _counts(tokens: Tokens, vocab_size: int) -> np.ndarray:
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for chunk in chunks(tokens):
        counts_V += np.bincount(chunk, minlength=vocab_size)
    return counts_V


def _pair_counts(tokens: Tokens, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Count adjacent pairs, in chunks; a pair is the number first * vocab_size + second. Pairs are sorted."""
    pairs, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for chunk in chunks(tokens, overlap=1):
        new, new_counts = np.unique(chunk[:-1].astype(np.int64) * vocab_size + chunk[1:], return_counts=True)
        pairs, indices = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        counts = np.bincount(indices, np.concatenate([counts, new_counts])).astype(np.int64)
    return pairs, counts
