"""The typed rows of metrics.jsonl."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanolm.errors import RunError
from nanolm.json_text import parse_object
from nanolm.runs.records import from_json
from nanolm.untrusted import StrPath, folder_of, open_inside, open_unbuffered, unreadable

TRAIN = "train"
VAL = "val"

# Rows with the norms of each module have some kilobytes.
MAX_ROW_BYTES = 1_000_000
# Bytes that are read at a time.
BLOCK_BYTES = 2**20
# Blocks of a long file, of which a curve on a page has some points each; shorter blocks are not thinned.
THINNED_BLOCKS = 750
SHORT_BLOCK_BYTES = 4096
# Splits with fewer rows in a block are not thinned.
MIN_THINNED = 16
# Bytes that are read at the end of a file, in case that it has grown.
MIN_READ = 4096
# Blocks that are faster to check as bytes than as arrays.
SHORT_BYTES = 2**14

_DIGITS_TO_1 = bytes.maketrans(b"0123456789", b"1" * 10)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRow:
    """A row of metrics.jsonl, in the order of the file. None means not measured; such fields are not written.

    Attributes:
        step: optimizer steps done.
        split: TRAIN or VAL.
        loss: nats per token. TRAIN: mean over the steps since the last row. VAL: exact, unless there are scored_tokens.
        scored_tokens: VAL: the tokens that `loss` is an estimate over (trainer.val_tokens).
        ema_loss: VAL: loss of the averaged weights.
        bits_per_byte: VAL: of `loss`.
        estimated_loss: VAL: estimate of `loss` over trainer.estimate_batches random batches.
        estimated_train_loss: VAL: the same on the training split.
        lr: TRAIN: learning rate of the step.
        grad_norm: TRAIN: L2 norm of the gradient before clipping.
        skipped_updates: TRAIN: updates skipped so far because an fp16 gradient overflowed.
        tokens: training tokens scored so far, and those counted for model.ngram_mix.
        seconds: since the run started, summed over its sessions.
        tokens_per_second: TRAIN: throughput without evaluations and saves.
        mfu: TRAIN: model FLOPs utilisation.
        weight_norms: TRAIN: L2 norm of the weights of each module (trainer.log_norms).
        grad_norms: TRAIN: L2 norm of the gradient of each module, after clipping.
    """

    step: int
    split: str
    loss: float | None = None
    scored_tokens: int | None = None
    ema_loss: float | None = None
    bits_per_byte: float | None = None
    estimated_loss: float | None = None
    estimated_train_loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    skipped_updates: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    weight_norms: dict[str, float] | None = None
    grad_norms: dict[str, float] | None = None


def iter_rows(path: StrPath, split: str | None = None) -> Iterator[MetricsRow]:
    """Yield the rows of metrics.jsonl; a last line without a line end (cut short by a kill) is left out.

    Args:
        split: yield the rows of this split only, without parsing the others; None yields all.

    Raises:
        RunError: the file cannot be read, or a line is not a row.
    """
    for offset, block in _blocks(path):
        lines = _lines(block) if split is None else _lines_containing(block, f'"{split}"'.encode())
        for at, line in lines:
            row = _parse_row(path, line, offset + at)
            if split is None or row.split == split:
                yield row


def read_rows(path: StrPath, split: str | None = None) -> list[MetricsRow]:
    """Read the rows of metrics.jsonl, as `iter_rows` yields them."""
    return list(iter_rows(path, split))


def check_rows(path: StrPath) -> None:
    """Check that every complete line of metrics.jsonl is a row, without parsing each.

    Raises:
        RunError: as `iter_rows`.
    """
    for offset, block in _blocks(path):
        shapes = _row_shapes(block)
        if not all(map(_is_row, set(shapes))):
            for shape, (at, line) in zip(shapes, _lines(block), strict=True):
                if not _is_row(shape):
                    _parse_row(path, line, offset + at)


def thinned_rows(path: StrPath, n_blocks: int = THINNED_BLOCKS) -> Iterator[MetricsRow]:
    """Yield the rows that curves need: all of a short file, without the norms of modules.

    Of each block of a long file, they are the first and the last row of each split, and those with the extremes of the
    loss and the gradient norm; all rows of a split that has few.

    Args:
        n_blocks: number of blocks of a long file.

    Raises:
        RunError: the file cannot be read, or one of these lines is not a row.
    """
    from nanolm.runs.row_blocks import extreme_rows

    size = Path(path).stat().st_size if Path(path).is_file() else 0
    is_short = size <= n_blocks * SHORT_BLOCK_BYTES
    for offset, block in _blocks(path, BLOCK_BYTES if is_short else size // n_blocks):
        chosen = None if is_short else extreme_rows(block, MIN_THINNED)
        lines = _lines(block) if chosen is None else ((begin, block[begin:end]) for begin, end in chosen)
        rows = (_without_norms(_parse_row(path, line, offset + at)) for at, line in lines)
        yield from rows if is_short or chosen is not None else _extremes(rows)


def read_last_row(path: StrPath) -> MetricsRow | None:
    """Read the last complete row from the end of metrics.jsonl; None where there is none.

    Raises:
        RunError: the file cannot be read, or its last line is not a row.
    """
    try:
        with open_inside(path, folder_of(path)) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_ROW_BYTES))
            lines = file.read(MAX_ROW_BYTES).split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        return from_json(MetricsRow, parse_object(lines[-1])) if lines else None
    except ValueError as error:
        n_lines = sum(block.count(b"\n") for _, block in _blocks(path))
        raise _damaged_line(path, n_lines, error) from error


def read_last_step(path: StrPath) -> int:
    """Read the step of the last complete row; 0 where there is none, or it is damaged."""
    with contextlib.suppress(RunError):
        row = read_last_row(path)
        return 0 if row is None else row.step
    return 0


def val_losses(rows: Iterable[MetricsRow]) -> dict[int, float]:
    """The validation loss at each evaluated step, in the order of the rows."""
    return {row.step: row.loss for row in rows if row.split == VAL and row.loss is not None}


def _blocks(path: StrPath, n_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of complete lines, each with its offset; none where there is no file."""
    offset, rest = 0, b""
    try:
        with open_unbuffered(path, folder_of(path)) as file:
            left = os.fstat(file.fileno()).st_size
            # A buffer of a megabyte takes longer than a short file.
            while chunk := file.read(min(n_bytes, max(left, MIN_READ))):
                left -= len(chunk)
                complete, line_end, chunk = chunk.rpartition(b"\n")
                if line_end:
                    block, rest = rest + complete + line_end, b""
                    yield offset, block
                    offset += len(block)
                rest += chunk
                if len(rest) > MAX_ROW_BYTES:
                    raise _damaged_line(path, _line_number(path, offset), f"it has more than {MAX_ROW_BYTES:,} bytes")
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error) from error


def _lines(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines of a block, each with its offset."""
    at = 0
    for line in block.split(b"\n")[:-1]:
        yield at, line
        at += len(line) + 1


def _lines_containing(block: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that contain a text; searching is much faster than splitting, as few lines do."""
    at = block.find(text)
    while at >= 0:
        begin, end = block.rfind(b"\n", 0, at) + 1, block.index(b"\n", at)
        yield begin, block[begin:end]
        at = block.find(text, end)


def _parse_row(path: StrPath, line: bytes, offset: int) -> MetricsRow:
    """Parse a line that begins at an offset of the file."""
    try:
        return from_json(MetricsRow, parse_object(line))
    except ValueError as error:
        raise _damaged_line(path, _line_number(path, offset), error) from error


def _line_number(path: StrPath, offset: int) -> int:
    """The number of the line that begins at an offset, counted from 1."""
    number, left = 1, offset
    with open_unbuffered(path, folder_of(path)) as file:
        while left and (chunk := file.read(min(BLOCK_BYTES, left))):
            number += chunk.count(b"\n")
            left -= len(chunk)
    return number


@functools.lru_cache(maxsize=1000)
def _is_row(line: bytes) -> bool:
    try:
        from_json(MetricsRow, parse_object(line))
    except ValueError:
        return False
    return True


def _without_norms(row: MetricsRow) -> MetricsRow:
    if row.weight_norms is None and row.grad_norms is None:
        return row
    return dataclasses.replace(row, weight_norms=None, grad_norms=None)


def _row_shapes(block: bytes) -> list[bytes]:
    """The lines of a block as `row_blocks.row_shapes` returns them."""
    if len(block) > SHORT_BYTES:
        from nanolm.runs.row_blocks import row_shapes

        return row_shapes(block)
    # Faster than arrays for a short file, and NumPy need not be imported.
    block = block.translate(_DIGITS_TO_1)
    for n_digits in (8, 3):
        block = block.replace(b"1" * n_digits, b"1")
    while b"11" in block:
        block = block.replace(b"11", b"1")
    return block.split(b"\n")[:-1]


def _extremes(rows: Iterable[MetricsRow]) -> list[MetricsRow]:
    """The rows that `row_blocks.extreme_rows` chooses, from parsed rows."""
    rows = list(rows)
    chosen: set[int] = set()
    for split in {row.split for row in rows}:
        of_split = [index for index, row in enumerate(rows) if row.split == split]
        chosen |= {of_split[0], of_split[-1], *(of_split if len(of_split) < MIN_THINNED else ())}
        for name in ("loss", "grad_norm"):
            values = [(value, index) for index in of_split if (value := getattr(rows[index], name)) is not None]
            chosen |= {min(values)[1], max(values)[1]} if values else set()
    return [rows[index] for index in sorted(chosen)]


def _damaged_line(path: StrPath, number: int, reason: object) -> RunError:
    return RunError(
        f"line {number} of {Path(path).name} is damaged: {reason}",
        where=str(path),
        hint="restore the file from a copy of the run",
    )
