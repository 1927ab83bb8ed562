"""Batches as a function of (stream, seed, step): no state but the step, so that a seek costs nothing.

Every rank of a data-parallel run asks for its share of the same batch: rows rank * B / n_ranks and on.
"""

from __future__ import annotations

import functools

import numpy as np

from nanolm.config import Batches
from nanolm.data.permutation import mix, permute
from nanolm.data.stream import Rows, Stream, Tokens, gather
from nanolm.errors import SettingsError

# A target that is not scored: the padding behind a row's text.
IGNORED = -100

# Steps whose positions are drawn together, which costs about as much as drawing those of one.
STEPS_AT_ONCE = 64


def draw(
    kind: Batches,
    stream: Stream,
    *,
    seed: int,
    step: int,
    batch_size: int,
    context_length: int,
    rank: int = 0,
    n_ranks: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The batch of a step, or a rank's share of it.

    Args:
        kind: what a row is made of; lines and documents need a stream with rows.
        seed: of the run.
        step: counted from 0.
        batch_size: rows of all ranks together.
        context_length: tokens a row.
        rank: from 0 to n_ranks - 1.
        n_ranks: processes that share the batch.

    Returns:
        inputs_BxT and targets_BxT, int64; targets are the tokens that follow the inputs, IGNORED behind a row's end.

    Raises:
        SettingsError: the batch cannot be shared evenly.
    """
    if batch_size % n_ranks:
        raise SettingsError(
            f"trainer.batch_size {batch_size} cannot be shared evenly by {n_ranks} processes",
            where="trainer.batch_size",
            mend=f"a multiple of {n_ranks}, such as {-(-batch_size // n_ranks) * n_ranks}",
        )
    share = slice(rank * batch_size // n_ranks, (rank + 1) * batch_size // n_ranks)
    if kind is Batches.windows:
        starts_B = _random_starts(len(stream.tokens) - context_length, seed, step, batch_size)
        return _windows_at(stream.tokens, starts_B[share], context_length)
    block, row = divmod(step, STEPS_AT_ONCE)
    if kind is Batches.epochs:
        n_blocks = (len(stream.tokens) - 1) // context_length
        blocks_B = _in_epochs(n_blocks, seed, block, batch_size)[row, share]
        return _windows_at(stream.tokens, blocks_B * context_length, context_length)
    assert stream.rows is not None, f"{kind} of a stream without rows"
    return rows_at(stream.tokens, stream.rows, _in_epochs(len(stream.rows), seed, block, batch_size)[row, share])


def windows(
    tokens: Tokens, *, seed: int, step: int, batch_size: int, context_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stretches of text from random positions, drawn with replacement.

    Returns:
        inputs_BxT and targets_BxT, int64; targets are the tokens that follow the inputs.
    """
    return _windows_at(tokens, _random_starts(len(tokens) - context_length, seed, step, batch_size), context_length)


def rows_at(tokens: Tokens, rows: Rows, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of these numbers, padded at the end: inputs with 0, targets with IGNORED.

    Padding stands behind all that is scored, where a causal mask does not see it.

    Returns:
        inputs_BxT and targets_BxT, int64.
    """
    begin_B, length_B, begins_piece_B = rows.targets(rows_B)
    inputs_BxT = np.zeros((len(rows_B), rows.context_length), dtype=np.int64)
    targets_BxT = np.full((len(rows_B), rows.context_length), IGNORED, dtype=np.int64)
    for row, (begin, length, begins_piece) in enumerate(
        zip(begin_B.tolist(), length_B.tolist(), begins_piece_B.tolist(), strict=True)
    ):
        targets_BxT[row, :length] = tokens[begin : begin + length]
        if begins_piece and rows.start is not None:
            inputs_BxT[row, 0] = rows.start
            inputs_BxT[row, 1:length] = targets_BxT[row, : length - 1]
        else:
            inputs_BxT[row, :length] = tokens[begin - 1 : begin - 1 + length]
    return inputs_BxT, targets_BxT


def _random_starts(n_starts: int, seed: int, step: int, batch_size: int) -> np.ndarray:
    block, row = divmod(step, STEPS_AT_ONCE)
    return _positions(n_starts, seed, block, batch_size)[row]


@functools.lru_cache(maxsize=4)
def _positions(high: int, seed: int, block: int, batch_size: int) -> np.ndarray:
    """Starts of the windows of a block of steps, STEPS_AT_ONCE x B, each in [0, high).

    They come from Philox (Salmon et al. 2011), a counter-based generator: the seed is its key and the block its
    counter, so that every block has a stream of numbers of its own.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, block, 0, 0]))
    return generator.integers(0, high, size=(STEPS_AT_ONCE, batch_size))


@functools.lru_cache(maxsize=4)
def _in_epochs(n: int, seed: int, block: int, batch_size: int) -> np.ndarray:
    """What is drawn in a block of steps, STEPS_AT_ONCE x B, from an endless row of epochs.

    An epoch is all of 0..n-1 in an order of its own; a batch may end one epoch and begin the next.
    """
    places = np.arange(STEPS_AT_ONCE * batch_size, dtype=np.int64) + block * STEPS_AT_ONCE * batch_size
    return permute(places % n, n, mix(seed, places // n)).reshape(STEPS_AT_ONCE, batch_size)


def _windows_at(tokens: Tokens, starts_B: np.ndarray, context_length: int) -> tuple[np.ndarray, np.ndarray]:
    rows_BxT1 = gather(tokens, starts_B, context_length + 1).astype(np.int64)
    return rows_BxT1[:, :-1], rows_BxT1[:, 1:]
