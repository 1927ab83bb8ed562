"""The fixed part of the validation split that trainer.val_tokens limits evaluations to."""

from __future__ import annotations

import numpy as np

from nanolm.data.tokens.stream import Scored, Stream

# Pieces of the split, evenly spread over it.
N_PIECES = 16


def pieces_of(stream: Stream, n_tokens: int, context_length: int) -> tuple[Stream, ...]:
    """Divide a split into parts and return the beginning of each: together about n_tokens tokens, in whole windows.

    They depend on nothing else, and are the same at every step, in every session and for every seed.

    The beginning of a part is as long as the others, in windows, or in rows of a split with rows. Parts without a
    scored token are left out, unless all are.
    """
    n_units, per_unit = _units(stream, context_length)
    n_wanted = max(1, round(n_tokens / per_unit))
    n_pieces = min(N_PIECES, n_wanted)
    length = min(-(-n_wanted // n_pieces), n_units // n_pieces or 1)
    starts = [n_units * number // n_pieces for number in range(n_pieces)]
    pieces = [_piece(stream, start, start + length, context_length) for start in starts]
    return tuple(piece for piece in pieces if piece.scored_tokens) or (stream,)


def _units(stream: Stream, context_length: int) -> tuple[int, float]:
    """Return the number of windows or segments of a split, and the scored tokens of each."""
    if stream.rows is not None:
        return stream.rows.n_segments, stream.scored_tokens / stream.rows.n_segments
    n_windows = max(1, (len(stream.tokens) - 1) // context_length)
    return n_windows, stream.scored_tokens / n_windows


def _piece(stream: Stream, first: int, last: int, context_length: int) -> Stream:
    """Return the windows or segments from `first` to before `last` as a split of their own."""
    if stream.rows is not None:
        begin, end = stream.rows.span(first, last)
        scored = None if stream.scored is None else Scored(stream.scored.mask[begin:end])
        rows = stream.rows.part(first, last, scored)
        return Stream(stream.tokens[begin:end], 0, rows, scored)
    begin, end = first * context_length, min(last * context_length + 1, len(stream.tokens))
    scored = None
    if stream.scored is not None:
        mask = stream.scored.mask[begin:end].copy()
        # The first token of a window is an input only.
        mask[:1] = False
        scored = Scored(mask)
    inside = stream.documents[(stream.documents > begin) & (stream.documents < end)]
    documents = np.concatenate([np.zeros(1, dtype=np.uint64), inside - np.uint64(begin)])
    return Stream(stream.tokens[begin:end], 0, None, scored, documents)
