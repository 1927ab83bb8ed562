"""`nanolm runs`: list runs with their status and best validation loss."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from nanolm import option_types as types
from nanolm.analysis import metrics
from nanolm.analysis.collection import Run, find
from nanolm.analysis.settings import nearest_column, values_of
from nanolm.cli.arguments import add_json
from nanolm.errors import SettingsError, nearest, raise_all
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.runs.summary import FINISHED
from nanolm.terminal import visible
from nanolm.wording import ESTIMATE, ESTIMATE_NOTE, MISSING, format_age, format_value

STATUSES = (
    *FINISHED, "running", "unfinished", "interrupted", "pruned", "diverged", "failed", "damaged", "no summary",
)  # fmt: skip
# Config groups shown as columns.
GROUPS = ("model", "size", "dataset")
STYLES = {
    **dict.fromkeys(FINISHED, "green"),
    "running": "cyan",
    **dict.fromkeys(("failed", "diverged", "damaged"), "red"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run in the list.

    Attributes:
        name: the shortest unique name.
        path: the run directory.
        status: as collection.Run has it.
        step: optimizer steps done.
        max_steps: optimizer steps to do.
        best_val_loss: in nats per token.
        bits_per_byte: at the best validation loss.
        is_estimate: whether these are estimates over a part of the validation split (trainer.val_tokens).
        choices: the option chosen in each config group.
        age: seconds since the last write.
        faults: damaged files, or the error of a failed run.
        notes: remarks such as an edited config.yaml.
    """

    name: str
    path: str
    status: str
    step: int | None
    max_steps: int | None
    best_val_loss: float | None
    bits_per_byte: float | None
    is_estimate: bool
    choices: dict[str, str]
    age: float
    faults: list[str]
    notes: list[str]


COLUMNS = ("name", "status", "step", "max_steps", "best_val_loss", "bits_per_byte", "age")


def add_arguments(parser: Parser) -> None:
    help_text = "the folder to search, with its subfolders"
    parser.add("folder", check=types.nonempty, nargs="?", default="outputs", metavar="FOLDER", help=help_text)
    help_text = "only runs with these, separated by commas"
    parser.add("--status", check=types.names, default=[], metavar="NAMES", help=help_text)
    help_text = "only runs with this setting or option; may be repeated"
    parser.add("--where", check=types.nonempty, action="append", default=[], metavar="KEY=VALUE", help=help_text)
    parser.add("--sort", check=types.nonempty, default="age", metavar="COLUMN", help="sort by this column")
    add_json(parser)


def run(arguments: Namespace) -> None:
    entries = list_runs(arguments.folder, arguments.status, arguments.where, arguments.sort)
    if arguments.json:
        print(dump_json({"runs": [dataclasses.asdict(entry) for entry in entries]}))
    else:
        _print_table(entries)


def list_runs(folder: str, statuses: Sequence[str] = (), where: Sequence[str] = (), sort: str = "age") -> list[Entry]:
    """Return the runs in a folder and its subfolders that satisfy all conditions.

    Args:
        statuses: statuses to include; empty includes all.
        where: key=value conditions with a setting, the last part of its key or a config group.
        sort: a column, ascending, or a config group. Runs without a value come last.

    Raises:
        RunError: there is no run.
        SettingsError: with every unknown status, key and column.
    """
    runs = find([folder])
    problems = [
        SettingsError(f"unknown status {status!r}", where="--status", hint=nearest(status, STATUSES))
        for status in statuses
        if status not in STATUSES
    ]
    if sort not in COLUMNS and sort not in GROUPS:
        hint = nearest_column(sort, [*COLUMNS, *GROUPS])
        problems.append(SettingsError(f"there is no column {sort!r}", where="--sort", hint=hint))
    kept = set(range(len(runs)))
    for condition in where:
        key, equals, wanted = condition.partition("=")
        if not equals:
            problems.append(SettingsError(f"--where {condition} has no value", where="--where", hint="KEY=VALUE"))
            continue
        try:
            _, values = values_of(key, runs)
        except SettingsError as error:
            problems.append(error)
            continue
        kept &= {at for at, value in enumerate(values) if matches(value, wanted)}
    raise_all(problems)
    entries = [_entry(run) for at, run in enumerate(runs) if at in kept]
    entries = [entry for entry in entries if not statuses or entry.status in statuses]

    def order(entry: Entry) -> tuple[bool, Any]:
        value = getattr(entry, sort) if sort in COLUMNS else entry.choices.get(sort)
        return (value is None, 0 if value is None else value)

    return sorted(entries, key=order)


def _print_table(entries: Sequence[Entry]) -> None:
    from nanolm.tables import Console, Table, cell

    console = Console()
    if not entries:
        console.print("no run satisfies these conditions")
        return
    groups = [group for group in GROUPS if any(entry.choices.get(group) for entry in entries)]
    headings = ["run", "status", "step", "val loss", "bits/byte", "age", *groups]
    rows = [
        [
            visible(entry.name),
            visible(entry.status),
            _format_step(entry),
            *(
                MISSING if value is None else f"{ESTIMATE * entry.is_estimate}{value:.4f}"
                for value in (entry.best_val_loss, entry.bits_per_byte)
            ),
            format_age(entry.age),
            *(visible(entry.choices.get(group, MISSING)) for group in groups),
        ]
        for entry in entries
    ]
    widths = [max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)]
    # Hide the columns of config groups before wrapping names.
    while len(widths) > 6 and sum(widths) + 1 > console.width:
        widths.pop()
    table = Table(headings[: len(widths)], "lLRRRRLLL"[: len(widths)])
    for name, status, *rest in rows:
        table.add_row(name, cell(status, STYLES.get(status, "yellow")), *rest[: len(widths) - 2])
    console.print(table)
    if any(entry.is_estimate for entry in entries):
        console.print(ESTIMATE_NOTE)
    for entry in entries:
        for remark in (*entry.faults, *entry.notes):
            console.print(cell(f"{entry.name}: {remark}"))


def matches(value: Any, wanted: str) -> bool:
    """Return whether a setting has the value that was typed: 1e-3 matches 0.001."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(wanted) == value
    if value is None:
        return wanted in ("null", "none", "None", "")
    return format_value(value) == wanted.strip("[]").replace(" ", "")


def _format_step(entry: Entry) -> str:
    """Format the step, with the number of steps to do unless they are done: 20/100."""
    if entry.step is None:
        return MISSING
    is_done = entry.step == entry.max_steps or not entry.max_steps
    return f"{entry.step:,}" if is_done else f"{entry.step:,}/{entry.max_steps:,}"


def _entry(run: Run) -> Entry:
    run, found = metrics.measure(run)
    faults = list(run.faults)
    if run.status == "failed" and run.summary.error:
        faults.append(run.summary.error)
    return Entry(
        name=run.name,
        path=str(run.path),
        status=run.status,
        step=found.step,
        max_steps=0 if run.summary.is_imported else metrics.max_steps(run),
        best_val_loss=found.best_val_loss,
        bits_per_byte=found.bits_per_byte,
        is_estimate="best_val_loss" in found.sampled,
        choices=run.summary.choices,
        age=time.time() - _last_write(run),
        faults=faults,
        notes=list(run.notes),
    )


def _last_write(run: Run) -> float:
    times = []
    for name in ("metrics.jsonl", "summary.json", "config.yaml"):
        with contextlib.suppress(OSError):
            times.append(os.stat(f"{run.path}/{name}").st_mtime)  # noqa: PTH116
    return max(times, default=0.0)
