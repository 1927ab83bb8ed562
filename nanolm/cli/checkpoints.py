"""`nanolm checkpoints`: list the checkpoints of a run and verify their checksums."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from argparse import Namespace
from pathlib import Path

from nanolm.cli.arguments import add_json, add_run
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.run_layout import checkpoints_by_step
from nanolm.runs.directory import RunDirectory
from nanolm.wording import ESTIMATE, ESTIMATE_NOTE, format_bytes

# The year 9000, in seconds since 1970.
LATEST = 221_845_392_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """A checkpoint in the list.

    Attributes:
        step: optimizer steps done when it was saved.
        val_loss: the latest validation loss at that step, in nats per token; None before the first evaluation, or if
            the manifest is damaged.
        is_estimate: whether it is over a part of the validation split (trainer.val_tokens).
        n_bytes: total size of its files.
        saved: modification time in ISO 8601, local time with its UTC offset.
        is_best: whether it has the lowest validation loss of the run.
        is_last: whether it is the newest intact checkpoint, from which the run resumes.
        faults: a description of each damaged file; empty if the checkpoint is intact.
    """

    step: int
    val_loss: float | None
    is_estimate: bool
    n_bytes: int
    saved: str
    is_best: bool
    is_last: bool
    faults: list[str]


def add_arguments(parser: Parser) -> None:
    parser.describe("Every file is read and compared with its SHA-256. Exit status 1: a checkpoint is damaged.")
    add_run(parser)
    add_json(parser)


def run(arguments: Namespace) -> int:
    """Print the checkpoints as a table or as JSON; the exit status is 1 if one is damaged, else 0."""
    from nanolm.training.checkpoints import files as checkpoint

    directory = RunDirectory(arguments.run)
    entries = list_checkpoints(directory)
    quarantined = [path.name for path in checkpoint.quarantined(directory.checkpoints)]
    if arguments.json:
        renamed = {"n_bytes": "bytes", "is_best": "best", "is_last": "last"}
        found = [{renamed.get(name, name): value for name, value in vars(entry).items()} for entry in entries]
        print(dump_json({"checkpoints": found, "quarantined": quarantined}))
    else:
        _print_table(directory, entries, quarantined)
    return int(any(entry.faults for entry in entries))


def list_checkpoints(run: RunDirectory) -> list[Entry]:
    """Verify every checkpoint of a run without changing anything; returns them from the oldest to the newest.

    Raises:
        RunError: the directory is not a run.
    """
    from nanolm.training.checkpoints import files as checkpoint
    from nanolm.training.checkpoints.base import base_problem

    checkpoints = checkpoints_by_step(run.require().checkpoints)
    inspected = [(step, path, *checkpoint.inspect(path)) for step, path in checkpoints.items()]
    # A run in progress may have removed one in the meantime.
    found = [(step, path, manifest, faults) for step, path, manifest, faults in inspected if path.exists()]
    intact = [checkpoint.Checkpoint(path, manifest) for _, path, manifest, faults in found if manifest and not faults]
    last_step = intact[-1].step if intact else None
    best_step = intact[-1].best_step if intact else None
    entries = []
    for step, path, manifest, faults in found:
        val_loss = manifest["val_loss"] if manifest else None
        reasons = [fault.found.removeprefix(f"{path.name}: ") for fault in faults]
        if manifest and (problem := base_problem(run, manifest.get("base"))):
            reasons.append(problem)
        n_bytes, saved = _size_and_time(path)
        is_estimate = bool(manifest and manifest.get("val_sample"))
        entries.append(
            Entry(step, val_loss, is_estimate, n_bytes, saved, step == best_step, step == last_step, reasons)
        )
    return entries


def _print_table(run: RunDirectory, entries: list[Entry], quarantined: list[str]) -> None:
    from nanolm.tables import Console, Table, cell

    console = Console()
    if not entries:
        console.print(cell(f"{run.path} has no checkpoint yet"), soft_wrap=True)
    else:
        table = Table(["step", "val loss", "size", "saved", "", "verified"], "RRRRll")
        for entry in entries:
            table.add_row(
                f"{entry.step:,}",
                "" if entry.val_loss is None else f"{ESTIMATE * entry.is_estimate}{entry.val_loss:.4f}",
                format_bytes(entry.n_bytes),
                datetime.datetime.fromisoformat(entry.saved).strftime("%Y-%m-%d %H:%M:%S"),
                ", ".join(["best"] * entry.is_best + ["last"] * entry.is_last),
                cell(f"damaged: {'; '.join(entry.faults)}", "bold red") if entry.faults else "intact",
            )
        console.print(table)
        if any(entry.is_estimate for entry in entries):
            console.print(ESTIMATE_NOTE)
    if quarantined:
        console.print(cell(f"damaged, quarantined on resume: {', '.join(quarantined)}"), soft_wrap=True)


def _size_and_time(path: Path) -> tuple[int, str]:
    """Return the total size of a checkpoint's files and the time of the latest write."""
    stats = []
    with contextlib.suppress(OSError):
        for file in path.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stats.append(file.lstat())
    newest = max((stat.st_mtime for stat in stats), default=path.lstat().st_mtime)
    # A file can have a time that no calendar has.
    newest = min(max(newest, 0), LATEST)
    saved = datetime.datetime.fromtimestamp(newest).astimezone().isoformat(timespec="seconds")
    return sum(stat.st_size for stat in stats), saved
