"""The rows of samples.jsonl: text that the model generated during training."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from nanolm.json_text import parse_object
from nanolm.runs.records import from_json
from nanolm.untrusted import damaged, read_inside, unreadable

# Some ten thousand samples of the default length.
MAX_BYTES = 16_000_000
MAX_LINES = 100_000


@dataclasses.dataclass(frozen=True)
class Sample:
    """A row of samples.jsonl: a generated text and the step of the model that generated it."""

    step: int
    text: str


def read_samples(path: Path) -> list[Sample]:
    """Read samples.jsonl; lines that are not samples, such as one cut short by a kill, are left out.

    Raises:
        RunError: the file exists and cannot be read.
    """
    try:
        lines = read_inside(path, path.parent, MAX_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(path, error) from error
    if len(lines) > MAX_LINES:
        raise damaged(path, f"it has more than {MAX_LINES:,} lines", "move it away: nothing else depends on it")
    samples = []
    for line in lines:
        with contextlib.suppress(ValueError):
            samples.append(from_json(Sample, parse_object(line)))
    return samples
