"""Tokens as batches read them: of one split, in order, from memory maps; where rows and documents begin in them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np


class Shards:
    """Arrays that read as one: length, slices, and stretches from many places at once."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        assert step == 1, f"step {step}"
        inside = []
        for part, end in zip(self.parts, self._ends.tolist(), strict=True):
            begin = end - len(part)
            if start < end and stop > begin:
                inside.append(part[max(start - begin, 0) : stop - begin])
        return inside[0] if len(inside) == 1 else np.concatenate(inside or [self.parts[0][:0]])


Tokens = np.ndarray | Shards


def gather_windows(tokens: Tokens, starts_B: np.ndarray, length: int) -> np.ndarray:
    """Stretches of `length` tokens from each start: BxL, in the type of the tokens."""
    if isinstance(tokens, np.ndarray):
        # Every stretch there is, as a view that costs nothing: rows that begin one token apart.
        shape, strides = (len(tokens) - length + 1, length), (tokens.itemsize, tokens.itemsize)
        return np.ndarray(shape, tokens.dtype, tokens, strides=strides)[starts_B]
    return np.stack([tokens[start : start + length] for start in starts_B.tolist()])


def chunks(tokens: Tokens, length: int = 2**22, overlap: int = 0) -> Iterator[np.ndarray]:
    """The tokens in order, some at a time; a chunk begins with the last `overlap` tokens of the one before it."""
    for start in range(0, max(len(tokens) - overlap, 0), length):
        yield tokens[start : start + length + overlap]


class Rows:
    """Pieces of text (lines or documents) with an end of their own, cut to rows of at most context_length targets.

    A row's inputs begin with what precedes every piece: the line end before it, `start`, where the tokenizer has a
    token for it; a piece longer than a row goes on in the next one behind its last token. So every token of the split
    is a target once. Where there is no such token the first of each piece is seen, and never a target.

    Args:
        starts: where each piece begins in the tokens, and where the last one ends.
        start: the token before each piece, or None.
        context_length: targets a row.
    """

    def __init__(self, starts: np.ndarray, start: int | None, context_length: int) -> None:
        self.start = start
        self.context_length = context_length
        self._starts = starts
        # Rows that come before each piece; a piece of one token that has nothing before it makes none.
        scored = np.diff(starts).astype(np.int64) - (start is None)
        self._rows_before = np.concatenate([[0], np.cumsum(-(-scored // context_length))])

    def __len__(self) -> int:
        return int(self._rows_before[-1])

    @property
    def n_pieces(self) -> int:
        """Lines or documents."""
        return len(self._starts) - 1

    @property
    def n_targets(self) -> int:
        """Targets of all rows together."""
        return int(self._starts[-1]) - (self.n_pieces if self.start is None else 0)

    def targets(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the targets of rows begin in the tokens, how many there are, and which rows begin a piece."""
        piece_B = np.searchsorted(self._rows_before, rows_B, side="right") - 1
        part_B = rows_B - self._rows_before[piece_B]
        begin_B = self._starts[piece_B].astype(np.int64) + (self.start is None) + part_B * self.context_length
        length_B = np.minimum(self._starts[piece_B + 1].astype(np.int64) - begin_B, self.context_length)
        return begin_B, length_B, part_B == 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """The tokens of one split.

    Attributes:
        tokens: ids, one-dimensional.
        scored_bytes: bytes of UTF-8 that the scored tokens stand for; of the original text where the tokenizer is
            lossy.
        rows: None where batches are cut from the text without regard to its lines.
        documents: where each document begins in the tokens, in order, uint64. The piece of a document with which a
            split begins is one, and so begins at 0. Split by line there are none, and what stands here means nothing.
        n_characters: of its text.
        n_bytes: of its text in UTF-8.
    """

    tokens: Tokens
    scored_bytes: int
    rows: Rows | None = None
    documents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, dtype=np.uint64))
    n_characters: int = 0
    n_bytes: int = 0

    @property
    def n_documents(self) -> int:
        """Documents and pieces of documents."""
        return len(self.documents)

    @property
    def scored_tokens(self) -> int:
        """How many tokens are scored: all but the first, which nothing precedes; in rows, every target."""
        return max(0, len(self.tokens) - 1) if self.rows is None else self.rows.n_targets

    def bits_per_byte(self, loss: float) -> float:
        """The loss over the split, in nats a token, as bits a byte of the very text that was scored."""
        return loss * self.scored_tokens / self.scored_bytes / math.log(2)
