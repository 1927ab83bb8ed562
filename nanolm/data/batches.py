"""Batches as a function of (stream, seed, step): no state but the step, so that a seek costs nothing.

Every rank of a data-parallel run asks for its share of the same batch: rows rank * B / world_size and on.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from nanolm.config.trainer import Sampling
from nanolm.data.permutation import mix, permute
from nanolm.data.tokens.stream import Rows, Stream, Tokens, gather_windows
from nanolm.errors import SettingsError

# A target that is not scored: the padding behind a row's text.
IGNORE_INDEX = -100

# Steps whose positions are drawn together, which costs about as much as drawing those of one.
STEPS_AT_ONCE = 64


class Batch(NamedTuple):
    """What a model reads and is scored on, int64.

    A document's first token is a target like any other, of the last position of the document before it: every token
    is scored, whatever a mask hides.

    Attributes:
        inputs_BxT: tokens.
        targets_BxT: the tokens that follow them; IGNORE_INDEX behind a row's end.
        documents_BxT: which of the stream's documents each input is of, counted from 0; None where nobody asked, and
            where a row is a piece of a single document.
    """

    inputs_BxT: np.ndarray  # noqa: N815  its shape is in its name
    targets_BxT: np.ndarray  # noqa: N815
    documents_BxT: np.ndarray | None = None  # noqa: N815


def draw(
    kind: Sampling,
    stream: Stream,
    *,
    seed: int,
    step: int,
    batch_size: int,
    context_length: int,
    rank: int = 0,
    world_size: int = 1,
    with_documents: bool = False,
) -> Batch:
    """The batch of a step, or a rank's share of it.

    Args:
        kind: what a row is made of; lines and documents need a stream with rows.
        seed: of the run.
        step: counted from 0.
        batch_size: rows of all ranks together.
        context_length: tokens a row.
        rank: from 0 to world_size - 1.
        world_size: processes that share the batch.
        with_documents: whether to say which document each input is of.

    Raises:
        SettingsError: the batch cannot be shared evenly.
    """
    if batch_size % world_size:
        raise SettingsError(
            f"trainer.batch_size {batch_size} cannot be shared evenly by {world_size} processes",
            where="trainer.batch_size",
            hint=f"a multiple of {world_size}, such as {-(-batch_size // world_size) * world_size}",
        )
    share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
    if kind is Sampling.windows:
        starts_B = _random_starts(len(stream.tokens) - context_length, seed, step, batch_size)[share]
        return _windows_at(stream, starts_B, context_length, with_documents)
    block, row = divmod(step, STEPS_AT_ONCE)
    if kind is Sampling.epochs:
        n_blocks = (len(stream.tokens) - 1) // context_length
        starts_B = _in_epochs(n_blocks, seed, block, batch_size)[row, share] * context_length
        return _windows_at(stream, starts_B, context_length, with_documents)
    assert stream.rows is not None, f"{kind} of a stream without rows"
    rows_B = _in_epochs(len(stream.rows), seed, block, batch_size)[row, share]
    return Batch(*gather_rows(stream.tokens, stream.rows, rows_B))


def document_ids(documents: np.ndarray, starts_B: np.ndarray, length: int) -> np.ndarray:
    """Which document each token of some windows is of.

    Args:
        documents: where each document begins in the tokens, from 0 on in order, uint64. One without a token begins
            where the next one does.
        starts_B: where each window begins in the tokens.
        length: tokens a window.

    Returns:
        documents_BxL, int64: counted from 0.
    """
    # Of the type of `documents`, or numpy would convert a copy of them all.
    first_B = starts_B.astype(documents.dtype)
    begun_B = np.searchsorted(documents, first_B, side="right")
    begun_by_end_B = np.searchsorted(documents, first_B + (length - 1), side="right")
    # Only a window's ends are looked up. A number goes up by one wherever a document begins between them.
    inside_B = begun_by_end_B - begun_B
    window_N = np.repeat(np.arange(len(starts_B)), inside_B)
    document_N = np.arange(len(window_N)) + np.repeat(begun_by_end_B - np.cumsum(inside_B), inside_B)
    documents_BxL = np.zeros((len(starts_B), length), dtype=np.int64)
    documents_BxL[:, 0] = begun_B - 1
    np.add.at(documents_BxL, (window_N, (documents[document_N] - first_B[window_N]).astype(np.int64)), 1)
    return documents_BxL.cumsum(axis=1)


def gather_rows(tokens: Tokens, rows: Rows, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of these numbers, padded at the end: inputs with 0, targets with IGNORE_INDEX.

    Padding stands behind all that is scored, where a causal mask does not see it.

    Returns:
        inputs_BxT and targets_BxT, int64.
    """
    begin_B, length_B, begins_piece_B = rows.targets(rows_B)
    inputs_BxT = np.zeros((len(rows_B), rows.context_length), dtype=np.int64)
    targets_BxT = np.full((len(rows_B), rows.context_length), IGNORE_INDEX, dtype=np.int64)
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


def _windows_at(stream: Stream, starts_B: np.ndarray, context_length: int, with_documents: bool) -> Batch:
    rows_BxT1 = gather_windows(stream.tokens, starts_B, context_length + 1).astype(np.int64)
    documents_BxT = document_ids(stream.documents, starts_B, context_length) if with_documents else None
    return Batch(rows_BxT1[:, :-1], rows_BxT1[:, 1:], documents_BxT)
