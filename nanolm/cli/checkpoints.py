"""`nanolm checkpoints`: which checkpoints a run has, and whether every byte of them is as it was saved."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from pathlib import Path
from typing import Any

from nanolm.json_text import dump_json
from nanolm.runs.console import in_units
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint


@dataclasses.dataclass(frozen=True)
class Entry:
    """A checkpoint as it was found.

    Attributes:
        step: updates done when it was saved.
        val_loss: of the newest evaluation by then, in nats per token; None before the first, or where the manifest is
            damaged.
        n_bytes: of all its files.
        saved: when, in local time with its offset from UTC, as the file system says.
        is_best: whether it has the lowest validation loss of the run.
        is_last: whether it is the one that a run goes on from: the newest whole one.
        faults: what is wrong with each damaged file; none of a whole one.
    """

    step: int
    val_loss: float | None
    n_bytes: int
    saved: str
    is_best: bool
    is_last: bool
    faults: list[str]


def look(run: RunDirectory) -> list[Entry]:
    """Reads every byte of every checkpoint of a run, the oldest first. Nothing is changed.

    Raises:
        RunError: there is no run.
    """
    paths = checkpoint.folders(run.require().checkpoints)
    found = [(path, *checkpoint.inspect(path)) for path in paths]
    # Of a run in motion, one may have been removed for newer ones in the meantime.
    found = [(path, manifest, faults) for path, manifest, faults in found if path.exists()]
    whole = [checkpoint.Checkpoint(path, manifest) for path, manifest, faults in found if manifest and not faults]
    last_step = whole[-1].step if whole else None
    best_step = whole[-1].numbers()["best_step"] if whole else None
    entries = []
    for path, manifest, faults in found:
        step = checkpoint.step_of(path)
        val_loss = manifest["val_loss"] if manifest else None
        reasons = [fault.found.removeprefix(f"{path.name}: ") for fault in faults]
        n_bytes, saved = _size_and_time(path)
        entries.append(Entry(step, val_loss, n_bytes, saved, step == best_step, step == last_step, reasons))
    return entries


def show(path: str, as_json: bool = False) -> int:
    """Prints the checkpoints of a run as a table or as one JSON object.

    Returns:
        The exit status: 1 where one is damaged, else 0.

    Raises:
        RunError: there is no run.
    """
    run = RunDirectory(path)
    entries = look(run)
    aside = [path.name for path in checkpoint.quarantined(run.checkpoints)]
    if as_json:
        print(dump_json({"checkpoints": [_plain(entry) for entry in entries], "set_aside": aside}))
    else:
        _print_table(run, entries, aside)
    return int(any(entry.faults for entry in entries))


def _print_table(run: RunDirectory, entries: list[Entry], aside: list[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from nanolm.tables import Console

    console = Console()
    if not entries:
        console.print(f"{escape(str(run.path))} has no checkpoint yet", soft_wrap=True)
    else:
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for name in ("step", "val loss", "size", "saved"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("")
        table.add_column("verified")
        for entry in entries:
            marks = [name for name, is_so in (("best", entry.is_best), ("last", entry.is_last)) if is_so]
            table.add_row(
                f"{entry.step:,}",
                "" if entry.val_loss is None else f"{entry.val_loss:.4f}",
                in_units(entry.n_bytes),
                datetime.datetime.fromisoformat(entry.saved).strftime("%Y-%m-%d %H:%M:%S"),
                ", ".join(marks),
                "[bold red]damaged:[/] " + escape("; ".join(entry.faults)) if entry.faults else "whole",
            )
        console.print(table)
    if aside:
        console.print(f"damaged, and set aside when the run went on: {escape(', '.join(aside))}", soft_wrap=True)


def _plain(entry: Entry) -> dict[str, Any]:
    renamed = {"n_bytes": "bytes", "is_best": "best", "is_last": "last"}
    return {renamed.get(name, name): value for name, value in dataclasses.asdict(entry).items()}


def _size_and_time(path: Path) -> tuple[int, str]:
    """Bytes of all files of a checkpoint, and when the last of them was written."""
    stats = []
    for file in path.iterdir():
        with contextlib.suppress(FileNotFoundError):
            stats.append(file.stat())
    newest = max((stat.st_mtime for stat in stats), default=path.stat().st_mtime)
    saved = datetime.datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")
    return sum(stat.st_size for stat in stats), saved
