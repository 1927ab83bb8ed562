"""Batches as a function of (tokens, seed, step): no state but the step, so that a seek costs nothing."""

from __future__ import annotations

import numpy as np


def windows(
    tokens: np.ndarray, *, seed: int, step: int, batch_size: int, context_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of text from random positions, drawn with replacement.

    The positions come from Philox (Salmon et al. 2011), a counter-based generator: `seed` is its key and `step` its
    counter, so that every step has a stream of numbers of its own.

    Returns:
        inputs_BxT and targets_BxT, int64; targets are the tokens that follow the inputs.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, step, 0, 0]))
    starts_B = generator.integers(0, len(tokens) - context_length, size=batch_size)
    rows_BxT1 = tokens[starts_B[:, None] + np.arange(context_length + 1)].astype(np.int64)
    return rows_BxT1[:, :-1], rows_BxT1[:, 1:]
