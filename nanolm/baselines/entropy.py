"""Baselines by counting: the losses of unigram and bigram frequencies on the same text.

Every token of the training text is counted, and every held-out token but the first is scored, as in every loss of
nanolm. Of a dataset with prompts, only the responses are counted and scored, as a model is trained on those: each loss
takes a bool per token of the training text and of the held-out text, or None for all of them.
"""

from __future__ import annotations

import numpy as np

from nanolm.data.tokens.stream import Tokens, chunks

# Tokens that are counted at once.
CHUNK = 2**22


def unigram_loss(
    train: Tokens,
    heldout: Tokens,
    vocab_size: int,
    is_counted: np.ndarray | None = None,
    is_scored: np.ndarray | None = None,
) -> float:
    """Return the mean loss of held-out text under the token frequencies of the training text, in nats per token.

    One is added to every count.
    """
    counts_V = _counts(train, vocab_size, is_counted) + 1
    scored_V = _counts(heldout[1:], vocab_size, None if is_scored is None else is_scored[1:])
    return float(-(scored_V @ np.log(counts_V / counts_V.sum())) / scored_V.sum())


def bigram_loss(
    train: Tokens,
    heldout: Tokens,
    vocab_size: int,
    is_counted: np.ndarray | None = None,
    is_scored: np.ndarray | None = None,
) -> float:
    """Return the mean loss of held-out text under the pair counts of the training text, in nats per token.

    P(b | a) = (count(a, b) + 1) / (count(a, .) + V)   (Jurafsky and Martin, Speech and Language Processing, 3.6)
    """
    pairs, pair_counts = _pair_counts(train, vocab_size, is_counted)
    first_counts_V = np.bincount(pairs // vocab_size, pair_counts, minlength=vocab_size)
    scored, scored_counts = _pair_counts(heldout, vocab_size, is_scored)
    at = np.minimum(np.searchsorted(pairs, scored), len(pairs) - 1)
    train_counts = np.where(pairs[at] == scored, pair_counts[at], 0)
    probability = (train_counts + 1) / (first_counts_V[scored // vocab_size] + vocab_size)
    return float(-(scored_counts @ np.log(probability)) / scored_counts.sum())


def _counts(tokens: Tokens, vocab_size: int, mask: np.ndarray | None) -> np.ndarray:
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for at, chunk in enumerate(chunks(tokens, CHUNK)):
        chosen = chunk if mask is None else chunk[mask[at * CHUNK :][: len(chunk)]]
        counts_V += np.bincount(chosen, minlength=vocab_size)
    return counts_V


def _pair_counts(tokens: Tokens, vocab_size: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Count adjacent pairs, in chunks; a pair is the number first * vocab_size + second. Pairs are sorted.

    Args:
        mask: which tokens count as the second of a pair; None for all.
    """
    pairs, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for at, chunk in enumerate(chunks(tokens, CHUNK, overlap=1)):
        found = chunk[:-1].astype(np.int64) * vocab_size + chunk[1:]
        if mask is not None:
            found = found[mask[at * CHUNK :][1 : len(chunk)]]
        new, new_counts = np.unique(found, return_counts=True)
        pairs, indices = np.unique(np.concatenate([pairs, new]), return_inverse=True)
        counts = np.bincount(indices, np.concatenate([counts, new_counts])).astype(np.int64)
    return pairs, counts
