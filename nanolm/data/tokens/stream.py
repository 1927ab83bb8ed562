"""The tokens of a split, with the starts of its rows and documents."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np


class Shards:
    """Several arrays that are read as one, by length and slices."""

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
    """Return the windows of `length` tokens from each start: shape BxL, dtype of the tokens."""
    if isinstance(tokens, np.ndarray):
        # A view of all windows, one token apart, costs no copy.
        shape, strides = (len(tokens) - length + 1, length), (tokens.itemsize, tokens.itemsize)
        return np.ndarray(shape, tokens.dtype, tokens, strides=strides)[starts_B]
    return np.stack([tokens[start : start + length] for start in starts_B.tolist()])


def chunks(tokens: Tokens, length: int = 2**22, overlap: int = 0) -> Iterator[np.ndarray]:
    """Yield the tokens in order, in chunks; each begins with the last `overlap` tokens of the previous chunk."""
    for start in range(0, max(len(tokens) - overlap, 0), length):
        yield tokens[start : start + length + overlap]


class Scored:
    """Which tokens of a split are scored, for a dataset with text that is only an input.

    Args:
        mask: bool, for each token. Tokens that are never a target are not scored.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        # Runs of scored tokens, in order.
        self._begins, self._ends = edges[::2], edges[1::2]

    @property
    def n_tokens(self) -> int:
        """The number of scored tokens."""
        return int((self._ends - self._begins).sum())

    @property
    def first(self) -> int:
        """Index of the first scored token; the length of the text if there is none."""
        return int(self._begins[0]) if len(self._begins) else len(self.mask)

    def is_any(self, begin_B: np.ndarray, end_B: np.ndarray) -> np.ndarray:
        """Return whether any token of each range [begin, end) is scored."""
        run_B = np.searchsorted(self._ends, begin_B, side="right")
        return (run_B < len(self._ends)) & (np.append(self._begins, len(self.mask))[run_B] < end_B)

    def move_to_targets(self, starts_B: np.ndarray, length: int) -> np.ndarray:
        """Move windows without a scored target to the next scored token, or to the last one if there is none.

        Args:
            starts_B: index of the first input of each window.
            length: inputs per window; each is followed by its target.
        """
        run_B = np.searchsorted(self._ends, starts_B + 1, side="right")
        nearest_B = np.append(self._begins, self._ends[-1] - 1)[run_B]
        # In the middle of a window, after as much of what precedes it.
        moved_B = np.clip(nearest_B - 1 - length // 2, 0, len(self.mask) - length - 1)
        return np.where(self.is_any(starts_B + 1, starts_B + 1 + length), starts_B, moved_B)


class Rows:
    """Segments of text (lines or documents), split into rows of at most context_length targets.

    The first input of a segment is `start`, the line end before it, so that every token of the split is a target once.
    A segment longer than a row continues in the next row, whose first input is the last target of the previous row.
    If the tokenizer has no token for `start`, the first token of each segment is an input but never a target. Rows
    without a scored target are left out.

    Args:
        starts: index of the first token of each segment, and of the end of the last one.
        start: the token before each segment, or None.
        context_length: maximum number of targets in a row.
        scored: which tokens are scored; None if all are.
    """

    def __init__(
        self, starts: np.ndarray, start: int | None, context_length: int, scored: Scored | None = None
    ) -> None:
        self.start = start
        self.scored = scored
        self.context_length = context_length
        self._starts = starts
        # Rows before each segment; a segment of one token without a start token has no row.
        scored_S = np.diff(starts).astype(np.int64) - (start is None)
        self._rows_before = np.concatenate([[0], np.cumsum(-(-scored_S // context_length))])
        self._split: Rows | None = None
        self._kept: np.ndarray | None = None
        if scored is not None:
            begin_R, length_R, _ = self.targets(np.arange(len(self)))
            self._kept = np.flatnonzero(scored.is_any(begin_R, begin_R + length_R))

    def __len__(self) -> int:
        return int(self._rows_before[-1]) if self._kept is None else len(self._kept)

    def split_at(self, context_length: int) -> Rows:
        """Return the rows of the same segments with at most context_length targets; the latest ones are kept."""
        if context_length == self.context_length:
            return self
        if self._split is None or self._split.context_length != context_length:
            self._split = Rows(self._starts, self.start, context_length, self.scored)
        return self._split

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the index of the first token of a segment, and of the end of the segment before `last`."""
        return int(self._starts[first]), int(self._starts[last])

    def part(self, first: int, last: int, scored: Scored | None) -> Rows:
        """Return the rows of the segments from `first` to before `last`, whose tokens are a split of their own.

        Args:
            scored: which of these tokens are scored.
        """
        starts = self._starts[first : last + 1]
        return Rows(starts - starts[0], self.start, self.context_length, scored)

    @property
    def n_segments(self) -> int:
        """The number of lines or documents."""
        return len(self._starts) - 1

    @property
    def n_targets(self) -> int:
        """The number of scored targets in all rows."""
        if self.scored is not None:
            return self.scored.n_tokens
        return int(self._starts[-1]) - (self.n_segments if self.start is None else 0)

    def targets(self, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Locate the targets of some rows.

        Returns:
            begin_B, length_B: index of the first target in the tokens, and number of targets.
            begins_segment_B: whether the row is the first of its segment.
        """
        rows_B = rows_B if self._kept is None else self._kept[rows_B]
        segment_B = np.searchsorted(self._rows_before, rows_B, side="right") - 1
        part_B = rows_B - self._rows_before[segment_B]
        begin_B = self._starts[segment_B].astype(np.int64) + (self.start is None) + part_B * self.context_length
        length_B = np.minimum(self._starts[segment_B + 1].astype(np.int64) - begin_B, self.context_length)
        return begin_B, length_B, part_B == 0


@dataclasses.dataclass(frozen=True)
class Stream:
    """The tokens of one split.

    Documents are identified by where they begin and not by a separator token, so that the tokens, and the loss over
    them, do not depend on the mask.

    Attributes:
        tokens: ids, one-dimensional.
        scored_bytes: bytes of UTF-8 that the scored tokens represent; of the original text if the tokenizer is lossy.
        rows: None if batches are windows of the continuous text.
        scored: which tokens are scored; None if all are.
        documents: index of the first token of each document, ascending, uint64. A part of a document at the start of
            the split counts as a document. Meaningless for a text that is split by line.
        n_characters: characters of its text.
        n_bytes: bytes of its text in UTF-8.
    """

    tokens: Tokens
    scored_bytes: int
    rows: Rows | None = None
    scored: Scored | None = None
    documents: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(1, dtype=np.uint64))
    n_characters: int = 0
    n_bytes: int = 0

    @property
    def n_documents(self) -> int:
        """The number of documents, parts of documents included."""
        return len(self.documents)

    @property
    def scored_tokens(self) -> int:
        """The number of tokens that are scored: all but the first, or the targets of all rows, or some of those."""
        if self.scored is not None:
            return self.scored.n_tokens
        return max(0, len(self.tokens) - 1) if self.rows is None else self.rows.n_targets

    def bits_per_byte(self, loss: float) -> float:
        """Convert the loss over the split from nats per token to bits per byte of the scored text."""
        return loss * self.scored_tokens / self.scored_bytes / math.log(2)
