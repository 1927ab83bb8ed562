"""The typed rows of metrics.jsonl."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanolm.errors import RunError
from nanolm.json_text import parse_object
from nanolm.runs.records import from_json
from nanolm.untrusted import unreadable

TRAIN = "train"
VAL = "val"

# Bytes read from the end of the file to find its last row; rows with norms are the longest.
TAIL_BYTES = 2**16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRow:
    """A row of metrics.jsonl, in the order of the file. None means not measured; such fields are not written.

    Attributes:
        step: optimizer steps done.
        split: TRAIN or VAL.
        loss: nats per token. TRAIN: mean over the steps since the last row. VAL: exact, over the whole split.
        ema_loss: VAL: loss of the averaged weights.
        bits_per_byte: VAL: of `loss`.
        lr: TRAIN: learning rate of the step.
        grad_norm: TRAIN: L2 norm of the gradient before clipping.
        skipped_updates: TRAIN: updates skipped so far because an fp16 gradient overflowed.
        tokens: training tokens scored so far.
        seconds: since the run started, summed over its sessions.
        tokens_per_second: TRAIN: throughput without evaluations and saves.
        mfu: TRAIN: model FLOPs utilisation.
        weight_norms: TRAIN: L2 norm of the weights of each module (trainer.log_norms).
        grad_norms: TRAIN: L2 norm of the gradient of each module, after clipping.
    """

    step: int
    split: str
    loss: float | None = None
    ema_loss: float | None = None
    bits_per_byte: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    skipped_updates: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    weight_norms: dict[str, float] | None = None
    grad_norms: dict[str, float] | None = None


def read_rows(path: Path, split: str | None = None) -> list[MetricsRow]:
    """Read metrics.jsonl; a last line without a line end (cut short by a kill) is left out.

    Args:
        split: read the rows of this split only, without parsing the others; None reads all.

    Raises:
        RunError: the file cannot be read, or a line is not a row.
    """
    content = _read_lines(path)
    lines = content.split(b"\n")[:-1] if split is None else _lines_containing(content, f'"{split}"'.encode())
    rows = []
    for line in lines:
        try:
            row = from_json(MetricsRow, parse_object(line))
        except ValueError as error:
            number = content.split(b"\n").index(line) + 1
            raise RunError(
                f"line {number} of metrics.jsonl is damaged: {error}",
                where=str(path),
                hint="restore the file from a copy of the run",
            ) from error
        if split is None or row.split == split:
            rows.append(row)
    return rows


def read_last_step(path: Path) -> int:
    """Read the step of the last complete row from the end of metrics.jsonl; 0 where there is none."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]
    try:
        return from_json(MetricsRow, parse_object(lines[-1])).step if lines else 0
    except ValueError:
        return 0


def val_losses(rows: Iterable[MetricsRow]) -> dict[int, float]:
    """The validation loss at each evaluated step, in the order of the rows."""
    return {row.step: row.loss for row in rows if row.split == VAL and row.loss is not None}


def _read_lines(path: Path) -> bytes:
    """The complete lines of a file; none where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise unreadable(path, error) from error
    return content[: content.rfind(b"\n") + 1]


def _lines_containing(content: bytes, text: bytes) -> Iterator[bytes]:
    """The lines that contain a text; searching is much faster than splitting, as few lines do."""
    at = content.find(text)
    while at >= 0:
        end = content.index(b"\n", at)
        yield content[content.rfind(b"\n", 0, at) + 1 : end]
        at = content.find(text, end)
