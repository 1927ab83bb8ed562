"""Batches as a function of (tokens, seed, step): no state but the step, so that a seek costs nothing."""

from __future__ import annotations

import functools

import numpy as np

# Steps whose positions are drawn together: the generator is made once for all of them.
STEPS_AT_ONCE = 64


def windows(
    tokens: np.ndarray, *, seed: int, step: int, batch_size: int, context_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of text from random positions, drawn with replacement.

    Returns:
        inputs_BxT and targets_BxT, int64; targets are the tokens that follow the inputs.
    """
    block, row = divmod(step, STEPS_AT_ONCE)
    starts_B = _positions(len(tokens) - context_length, seed, block, batch_size)[row]
    rows_BxT1 = tokens[starts_B[:, None] + _offsets(context_length)].astype(np.int64)
    return rows_BxT1[:, :-1], rows_BxT1[:, 1:]


@functools.lru_cache(maxsize=4)
def _positions(high: int, seed: int, block: int, batch_size: int) -> np.ndarray:
    """Starts of the windows of a block of steps, STEPS_AT_ONCE x B, each in [0, high).

    They come from Philox (Salmon et al. 2011), a counter-based generator: the seed is its key and the block its
    counter, so that every block has a stream of numbers of its own.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, block, 0, 0]))
    return generator.integers(0, high, size=(STEPS_AT_ONCE, batch_size))


@functools.lru_cache(maxsize=4)
def _offsets(context_length: int) -> np.ndarray:
    return np.arange(context_length + 1)
