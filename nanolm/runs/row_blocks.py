"""Blocks of metrics.jsonl as arrays of bytes: checking and thinning millions of rows without parsing each."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

# Longer than any number that `repr` gives.
NUMBER_BYTES = 24
# A key of a row, and the number of commas before it. Training rows have the gradient norm after the learning rate.
SPLIT_KEY = b'"split": "'
QUANTITIES = {b"t": ((b'"loss": ', 1), (b'"grad_norm": ', 3)), b"v": ((b'"loss": ', 1),)}

_DIGITS_TO_1 = bytes.maketrans(b"0123456789", b"1" * 10)


def row_shapes(block: bytes) -> list[bytes]:
    """The lines of a block with every run of digits replaced by 1; most rows of a file have one of a few shapes."""
    text = np.frombuffer(block.translate(_DIGITS_TO_1), np.uint8)
    is_kept = text != ord("1")
    is_kept[:1] = True
    is_kept[1:] |= text[1:] != text[:-1]
    return text[is_kept].tobytes().split(b"\n")[:-1]


def extreme_rows(block: bytes, min_thinned: int) -> list[tuple[int, int]] | None:
    """Choose rows that keep the look of the curves of a block.

    These are the first and the last row of each split, and those with the extremes of the loss and the gradient norm.

    Args:
        min_thinned: all rows of a split are chosen if it has fewer.

    Returns:
        Where their lines begin and end, in order; None if some row is not as nanolm writes it, and has to be parsed.
    """
    text = np.frombuffer(block + b"," + bytes(2 * NUMBER_BYTES), np.uint8)
    ends = np.flatnonzero(text[: len(block)] == ord("\n"))
    commas = np.flatnonzero(text[: len(block) + 1] == ord(","))
    line_begins = np.append(0, ends[:-1] + 1)
    first_comma = np.searchsorted(commas, line_begins)
    windows = sliding_window_view(text, NUMBER_BYTES)

    def fields(rows: np.ndarray, key: bytes, n_commas: int) -> tuple[np.ndarray, bool]:
        """Where the values of a key begin in these rows, and whether all of them have the key there."""
        at = commas[np.minimum(first_comma[rows] + n_commas, len(commas) - 1)] + 2
        return at + len(key), bool((windows[at, : len(key)] == np.frombuffer(key, np.uint8)).all())

    all_rows = np.arange(len(ends))
    at, is_usual = fields(all_rows, SPLIT_KEY, 0)
    chosen: set[int] = set()
    n_seen = 0
    for letter, quantities in QUANTITIES.items():
        rows = all_rows[text[at] == ord(letter)]
        n_seen += len(rows)
        chosen.update(rows.tolist() if len(rows) < min_thinned else rows[[0, -1]].tolist())
        for key, n_commas in quantities if len(rows) >= min_thinned else ():
            begins, has_key = fields(rows, key, n_commas)
            if not has_key:
                return None
            next_comma = commas[np.minimum(first_comma[rows] + n_commas + 1, len(commas) - 1)]
            try:
                found = _extremes(text, windows, begins, np.minimum(next_comma, ends[rows] - 1))
            except ValueError:
                return None
            chosen.update(rows[found].tolist())
    if not is_usual or n_seen < len(ends):
        return None
    return [(int(line_begins[row]), int(ends[row])) for row in sorted(chosen)]


def _extremes(text: np.ndarray, windows: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> list[int]:
    """The indices of the least and the greatest of the numbers at these places.

    Numbers such as 2.345 have the order of their texts. Others, such as 1e-05 and 12.5, are converted, which takes
    much longer, and have extremes of their own.

    Raises:
        ValueError: a text is not a number.
    """
    has_exponent = (text[ends - 4] == ord("e")) | (text[ends - 5] == ord("e"))
    is_short = (text[begins + 1] == ord(".")) & ~has_exponent
    chosen = []
    for places, is_text in ((np.flatnonzero(is_short), True), (np.flatnonzero(~is_short), False)):
        if not len(places):
            continue
        if is_text:
            values = windows[begins[places]].copy()
            values[np.arange(NUMBER_BYTES) >= (ends - begins)[places, None]] = 0
            numbers = values.view(f"S{NUMBER_BYTES}").ravel()
        else:
            numbers = np.array([float(text[b:e].tobytes()) for b, e in zip(begins[places], ends[places], strict=True)])
        chosen += [int(places[numbers.argmin()]), int(places[numbers.argmax()])]
    return chosen
