"""Batches as a function of (stream, seed, step), without sampler state: any step can be drawn at the same cost.

Each rank of a data-parallel run draws its share of the same batch, the rows from rank * B / world_size on.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from nanolm.config.batch_schedule import Stage
from nanolm.config.trainer import Sampling
from nanolm.data.permutation import mix, permute
from nanolm.data.tokens.stream import Rows, Stream, Tokens, gather_windows
from nanolm.errors import SettingsError

# The target at padded positions, which is not scored; PyTorch's default ignore_index.
IGNORE_INDEX = -100

# Steps drawn together, at about the cost of one.
STEPS_PER_BLOCK = 64


class Batch(NamedTuple):
    """Inputs and targets of a model, int64.

    The first token of a document is a target of the last position of the previous document: every token is scored,
    also under a document mask. Only the prompts of dataset=instructions are not scored.

    Attributes:
        inputs_BxT: tokens.
        targets_BxT: the tokens that follow them; IGNORE_INDEX after the end of a row, and for tokens that are not
            scored.
        documents_BxT: index of the document of each input; None if not requested, or if every row is part of a single
            document.
    """

    inputs_BxT: np.ndarray  # noqa: N815  the name shows the shape
    targets_BxT: np.ndarray  # noqa: N815
    documents_BxT: np.ndarray | None = None  # noqa: N815


def draw(
    kind: Sampling,
    stream: Stream,
    stage: Stage,
    *,
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
    with_documents: bool = False,
) -> Batch:
    """Draw the batch of a step, or a rank's share of it.

    Every row has a scored target: windows and blocks without one are moved to the nearest.

    Args:
        kind: how rows are sampled; lines and documents need a stream with rows.
        stage: that of the step, with the shape of its batches.
        step: counted from 0.
        with_documents: whether to return documents_BxT.

    Raises:
        SettingsError: the batch size is not divisible by world_size.
    """
    batch_size, context_length = stage.batch_size, stage.context_length
    if batch_size % world_size:
        raise SettingsError(
            f"trainer.batch_size ({batch_size}) is not divisible by the number of processes ({world_size})",
            where="trainer.batch_size",
            hint=f"use a multiple of {world_size}, such as {-(-batch_size // world_size) * world_size}",
        )
    share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
    if kind is Sampling.windows:
        block, row = divmod(step, STEPS_PER_BLOCK)
        high = len(stream.tokens) - context_length
        starts_B = _random_starts(high, seed, block, stage.number, batch_size)[row, share]
    else:
        block, row = divmod(step - stage.start, STEPS_PER_BLOCK)
        first = stage.rows_before + block * STEPS_PER_BLOCK * batch_size
        if kind is not Sampling.epochs:
            assert stream.rows is not None, f"{kind} of a stream without rows"
            rows = stream.rows.split_at(context_length)
            rows_B = _shuffled_epochs(len(rows), seed, first, batch_size)[row, share]
            return Batch(*gather_rows(stream.tokens, rows, rows_B))
        n_blocks = (len(stream.tokens) - 1) // context_length
        starts_B = _shuffled_epochs(n_blocks, seed, first, batch_size)[row, share] * context_length
    if stream.scored is not None:
        starts_B = stream.scored.move_to_targets(starts_B, context_length)
    inputs_BxT, targets_BxT = gather_targets(stream, starts_B, context_length)
    documents_BxT = document_ids(stream.documents, starts_B, context_length) if with_documents else None
    return Batch(inputs_BxT, targets_BxT, documents_BxT)


def gather_targets(stream: Stream, starts_B: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows of `length` inputs from each start, and their targets.

    Returns:
        inputs_BxT and targets_BxT, int64; targets that are not scored are IGNORE_INDEX.
    """
    window_BxT1 = gather_windows(stream.tokens, starts_B, length + 1).astype(np.int64)
    targets_BxT = window_BxT1[:, 1:]
    if stream.scored is not None:
        targets_BxT = np.where(gather_windows(stream.scored.mask, starts_B + 1, length), targets_BxT, IGNORE_INDEX)
    return window_BxT1[:, :-1], targets_BxT


def document_ids(documents: np.ndarray, starts_B: np.ndarray, length: int) -> np.ndarray:
    """Return the index of the document of each token in some windows.

    Args:
        documents: index of the first token of each document, ascending from 0, uint64. An empty document has the same
            start as the next one.
        starts_B: index of the first token of each window.
        length: tokens per window.

    Returns:
        documents_Bxl, int64.
    """
    # The dtype of `documents`: for another one, numpy would convert a copy of them all.
    first_B = starts_B.astype(documents.dtype)
    begun_B = np.searchsorted(documents, first_B, side="right")
    begun_by_end_B = np.searchsorted(documents, first_B + (length - 1), side="right")
    # Only the ends of each window are searched; the index grows by one at each document start between them.
    inside_B = begun_by_end_B - begun_B
    window_n = np.repeat(np.arange(len(starts_B)), inside_B)
    document_n = np.arange(len(window_n)) + np.repeat(begun_by_end_B - np.cumsum(inside_B), inside_B)
    documents_Bxl = np.zeros((len(starts_B), length), dtype=np.int64)
    documents_Bxl[:, 0] = begun_B - 1
    np.add.at(documents_Bxl, (window_n, (documents[document_n] - first_B[window_n]).astype(np.int64)), 1)
    return documents_Bxl.cumsum(axis=1)


def gather_rows(tokens: Tokens, rows: Rows, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows by their indices, padded at the end: inputs with 0, targets with IGNORE_INDEX.

    Targets that are not scored are IGNORE_INDEX as well.

    A causal mask hides the padding from every scored position, as it comes last.

    Returns:
        inputs_BxT and targets_BxT, int64.
    """
    begin_B, length_B, begins_segment_B = rows.targets(rows_B)
    inputs_BxT = np.zeros((len(rows_B), rows.context_length), dtype=np.int64)
    targets_BxT = np.full((len(rows_B), rows.context_length), IGNORE_INDEX, dtype=np.int64)
    located = zip(begin_B.tolist(), length_B.tolist(), begins_segment_B.tolist(), strict=True)
    for row, (begin, length, begins_segment) in enumerate(located):
        targets_BxT[row, :length] = tokens[begin : begin + length]
        if begins_segment and rows.start is not None:
            inputs_BxT[row, 0] = rows.start
            inputs_BxT[row, 1:length] = targets_BxT[row, : length - 1]
        else:
            inputs_BxT[row, :length] = tokens[begin - 1 : begin - 1 + length]
        if rows.scored is not None:
            targets_BxT[row, :length][~rows.scored.mask[begin : begin + length]] = IGNORE_INDEX
    return inputs_BxT, targets_BxT


@functools.lru_cache(maxsize=4)
def _random_starts(high: int, seed: int, block: int, stage: int, batch_size: int) -> np.ndarray:
    """Draw the window starts of a block of steps, shape STEPS_PER_BLOCK x B, each in [0, high).

    Philox (Salmon et al. 2011) is a counter-based generator: with the seed as key and the block and the stage as
    counters, blocks are independent of each other, also in the two stages that a block may be part of.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, block, stage, 0]))
    return generator.integers(0, high, size=(STEPS_PER_BLOCK, batch_size))


@functools.lru_cache(maxsize=4)
def _shuffled_epochs(n: int, seed: int, first: int, batch_size: int) -> np.ndarray:
    """Return the indices of a block of steps, shape STEPS_PER_BLOCK x B, from a sequence of epochs.

    An epoch is a permutation of 0..n-1, different for each epoch; a batch may span two epochs.

    Args:
        first: position of the block in the sequence.
    """
    positions = np.arange(STEPS_PER_BLOCK * batch_size, dtype=np.int64) + first
    return permute(positions % n, n, mix(seed, positions // n)).reshape(STEPS_PER_BLOCK, batch_size)
