"""Counted language models: the closed form that a trained table approaches, and the honest baseline."""

from __future__ import annotations

import numpy as np


def unigram_loss(train: np.ndarray, heldout: np.ndarray, vocab_size: int, add: float = 1.0) -> float:
    """Mean nats a token of `heldout` under the token frequencies of `train`, add-k smoothed.

    Its first token is not scored, as in every other loss here.
    """
    counts_V = np.bincount(train, minlength=vocab_size) + add
    return float(-np.mean(np.log(counts_V / counts_V.sum())[heldout[1:]]))


def bigram_loss(train: np.ndarray, heldout: np.ndarray, vocab_size: int, add: float = 1.0) -> float:
    """Mean nats a token of `heldout` under the pair counts of `train`, add-k smoothed.

    P(b | a) = (count(a, b) + add) / (count(a, .) + add V)   (Jurafsky and Martin, Speech and Language Processing, 3.6)
    """
    pairs, pair_counts = np.unique(_pairs(train, vocab_size), return_counts=True)
    first_counts_V = np.bincount(train[:-1], minlength=vocab_size)
    seen, seen_counts = np.unique(_pairs(heldout, vocab_size), return_counts=True)
    at = np.minimum(np.searchsorted(pairs, seen), len(pairs) - 1)
    found = np.where(pairs[at] == seen, pair_counts[at], 0)
    likelihood = (found + add) / (first_counts_V[seen // vocab_size] + add * vocab_size)
    return float(-(seen_counts @ np.log(likelihood)) / seen_counts.sum())


def _pairs(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Each adjacent pair as one number."""
    return tokens[:-1].astype(np.int64) * vocab_size + tokens[1:]
