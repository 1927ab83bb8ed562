"""A reader of offline wandb files that is independent of wandb's own."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any


def records(path: Path) -> list[Any]:
    """Parse the records of an offline file: a 7-byte header, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, at, found, pending = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        pending += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            found.append(record)
            pending = b""
    return found


def read_records(folder: Path, timeout: float = 20.0) -> list[Any]:
    """Read the records of an offline folder once its run is closed, which wandb does asynchronously.

    Args:
        folder: of one offline run.
        timeout: seconds to wait for the exit record; 0 reads the current records.
    """
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + timeout
    while True:
        found = records(path)
        if any(record.HasField("exit") for record in found) or time.monotonic() >= deadline:
            return found
        time.sleep(0.05)


def history(folder: Path, timeout: float = 20.0) -> list[dict[str, Any]]:
    """Return the history rows of a run, with wandb's own keys (_step, _timestamp, ...)."""
    return [_values(record.history.item) for record in read_records(folder, timeout) if record.HasField("history")]


def header(folder: Path) -> Any:
    """Return the run record: id, name, group, tags and config."""
    return next(record.run for record in read_records(folder) if record.HasField("run"))


def config(folder: Path) -> dict[str, Any]:
    """Return the config of the run record."""
    return _values(header(folder).config.update)


def summary(folder: Path) -> dict[str, Any]:
    """Return the summary after all updates."""
    found: dict[str, Any] = {}
    for record in read_records(folder):
        if record.HasField("summary"):
            found |= _values(record.summary.update)
    return found


def exit_codes(folder: Path) -> list[int]:
    """Return the exit codes of the run; empty if it was not closed."""
    return [record.exit.exit_code for record in read_records(folder) if record.HasField("exit")]


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
