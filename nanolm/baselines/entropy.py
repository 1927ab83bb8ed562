"""The reference lines: what counting tokens and pairs reaches on the same text."""

from __future__ import annotations

import numpy as np

from nanolm.data.tokens.stream import Tokens, chunks


def unigram_loss(train: Tokens, heldout: Tokens, vocab_size: int, add: float = 1.0) -> float:
    """Mean nats a token of `heldout` under the token frequencies of `train`, add-k smoothed.

    Its first token is not scored, as in every other loss here.
    """
    counts_V = _counts(train, vocab_size) + add
    scored_V = _counts(heldout[1:], vocab_size)
    return float(-(scored_V @ np.log(counts_V / counts_V.sum())) / scored_V.sum())


def bigram_loss(train: Tokens, heldout: Tokens, vocab_size: int, add: float = 1.0) -> float:
    """Mean nats a token of `heldout` under the pair counts of `train`, add-k smoothed.

    P(b | a) = (count(a, b) + add) / (count(a, .) + add V)   (Jurafsky and Martin, Speech and Language Processing, 3.6)
    """
    pairs, pair_counts = _pair_counts(train, vocab_size)
    first_counts_V = _counts(train[: len(train) - 1], vocab_size)
    seen, seen_counts = _pair_counts(heldout, vocab_size)
    at = np.minimum(np.searchsorted(pairs, seen), len(pairs) - 1)
    found = np.where(pairs[at] == seen, pair_counts[at], 0)
    likelihood = (found + add) / (first_counts_V[seen // vocab_size] + add * vocab_size)
    return float(-(seen_counts @ np.log(likelihood)) / seen_counts.sum())


def _counts(tokens: Tokens, vocab_size: int) -> np.ndarray:
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for chunk in chunks(tokens):
        counts_V += np.bincount(chunk, minlength=vocab_size)
    return counts_V


def _pair_counts(tokens: Tokens, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The adjacent pairs that occur, each as one number, in order, and how often; some megabytes of text at a time."""
    pairs, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for chunk in chunks(tokens, overlap=1):
        new, new_counts = np.unique(chunk[:-1].astype(np.int64) * vocab_size + chunk[1:], return_counts=True)
        pairs, places = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([counts, new_counts])).astype(np.int64)
    return pairs, counts
