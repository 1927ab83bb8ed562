"""What wandb wrote offline, read back without wandb's own reader."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any


def records(path: Path) -> list[Any]:
    """The records of an offline file: LevelDB's log framing behind a header of 7 bytes."""
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


def of(folder: Path, patience: float = 20.0) -> list[Any]:
    """The records of one offline folder, once it is closed: wandb's service writes the end in its own time.

    Args:
        patience: seconds to wait for the end; 0 takes what is there.
    """
    (path,) = folder.glob("*.wandb")
    deadline = time.monotonic() + patience
    while True:
        found = records(path)
        if any(record.HasField("exit") for record in found) or time.monotonic() >= deadline:
            return found
        time.sleep(0.05)


def history(folder: Path, patience: float = 20.0) -> list[dict[str, Any]]:
    """The rows of one offline folder, wandb's own keys (_step, _timestamp, ...) among them."""
    return [_values(record.history.item) for record in of(folder, patience) if record.HasField("history")]


def header(folder: Path) -> Any:
    """How one offline folder's run is introduced: its id, name, group, tags and config."""
    return next(record.run for record in of(folder) if record.HasField("run"))


def config(folder: Path) -> dict[str, Any]:
    """The settings that a run was introduced with."""
    return _values(header(folder).config.update)


def summary(folder: Path) -> dict[str, Any]:
    """The summary as its updates leave it."""
    found: dict[str, Any] = {}
    for record in of(folder):
        if record.HasField("summary"):
            found |= _values(record.summary.update)
    return found


def exit_codes(folder: Path) -> list[int]:
    """How the run was closed; empty when it was not."""
    return [record.exit.exit_code for record in of(folder) if record.HasField("exit")]


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
