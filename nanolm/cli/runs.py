"""`nanolm runs`: which runs there are, how each stands, and the best value of each."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from nanolm.analysis import metrics as figures
from nanolm.analysis.collection import Run, find, values_of
from nanolm.analysis.comparison import near
from nanolm.errors import SettingsError, nearest, raise_all
from nanolm.json_text import dump_json
from nanolm.runs.directory import RunDirectory
from nanolm.terminal import visible
from nanolm.wording import format_value

STATUSES = (
    "completed", "running", "cut off", "interrupted", "pruned", "diverged", "failed", "damaged", "no summary",
)  # fmt: skip
# Groups whose choice is shown.
SHOWN = ("model", "size", "dataset")
STYLES = {"completed": "green", "running": "cyan", "failed": "red", "diverged": "red", "damaged": "red"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run in a line.

    Attributes:
        name: short, and its own.
        path: its directory.
        status: as collection.Run has it.
        step: updates done.
        max_steps: updates to do.
        best_val_loss: nats per token.
        bits_per_byte: of the same.
        choices: the option chosen in each group.
        age: seconds since it last wrote.
        faults: what is damaged, or the error that it failed with.
        notes: what else a reader should know, such as an edited config.yaml.
    """

    name: str
    path: str
    status: str
    step: int | None
    max_steps: int | None
    best_val_loss: float | None
    bits_per_byte: float | None
    choices: dict[str, str]
    age: float
    faults: list[str]
    notes: list[str]


NOT_COLUMNS = ("path", "choices", "faults", "notes")
COLUMNS = tuple(field.name for field in dataclasses.fields(Entry) if field.name not in NOT_COLUMNS)


def look(folder: str, statuses: Sequence[str] = (), where: Sequence[str] = (), sort: str = "age") -> list[Entry]:
    """The runs at and below a folder that fit all conditions.

    Args:
        folder: where to look.
        statuses: states to show; none: all.
        where: key=value with a setting, the end of its key or a group; a run must have all of them.
        sort: a column, upward, or a group. What has no value comes last.

    Raises:
        RunError: there is no run.
        SettingsError: a status, a key or a column is not known; all problems at once.
    """
    runs = find([folder])
    problems = [
        SettingsError(f"no run can be {status!r}", where="--status", hint=nearest(status, STATUSES))
        for status in statuses
        if status not in STATUSES
    ]
    if sort not in COLUMNS and sort not in SHOWN:
        problems.append(
            SettingsError(f"there is no column {sort!r}", where="--sort", hint=near(sort, [*COLUMNS, *SHOWN]))
        )
    kept = set(range(len(runs)))
    for condition in where:
        key, equals, wanted = condition.partition("=")
        if not equals:
            problems.append(SettingsError(f"--where {condition} is no condition", where="--where", hint="KEY=VALUE"))
            continue
        try:
            _, values = values_of(key, runs)
        except SettingsError as error:
            problems.append(error)
            continue
        kept &= {at for at, value in enumerate(values) if is_same(value, wanted)}
    raise_all(problems)
    now = time.time()
    found = [_entry(run, now) for at, run in enumerate(runs) if at in kept]
    found = [entry for entry in found if not statuses or entry.status in statuses]

    def order(entry: Entry) -> tuple[bool, Any]:
        value = getattr(entry, sort) if sort in COLUMNS else entry.choices.get(sort)
        return (value is None, 0 if value is None else value)

    return sorted(found, key=order)


def show(folder: str, statuses: Sequence[str], where: Sequence[str], sort: str, as_json: bool) -> None:
    """Prints them as a table or as one JSON object.

    Raises:
        NanolmError: as `look`.
    """
    entries = look(folder, statuses, where, sort)
    if as_json:
        print(dump_json({"runs": [dataclasses.asdict(entry) for entry in entries]}))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from nanolm.tables import Console, cell

    console = Console()
    if not entries:
        console.print("no run fits these conditions")
        return
    shown = [group for group in SHOWN if any(entry.choices.get(group) for entry in entries)]
    lines = [
        [
            entry.name,
            entry.status,
            steps_in_words(entry),
            "–" if entry.best_val_loss is None else f"{entry.best_val_loss:.4f}",
            "–" if entry.bits_per_byte is None else f"{entry.bits_per_byte:.4f}",
            ago(entry.age),
            *(entry.choices.get(group, "–") for group in shown),
        ]
        for entry in entries
    ]
    headings = ["run", "state", "step", "val loss", "bits/byte", "age", *shown]
    lines = [[visible(text) for text in line] for line in lines]
    widths = [max(map(len, column)) + 2 for column in zip(headings, *lines, strict=True)]
    # A choice goes before a name is broken.
    while len(widths) > 6 and sum(widths) + 1 > console.width:
        widths.pop()
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for at, heading in enumerate(headings[: len(widths)]):
        table.add_column(heading, justify="right" if 2 <= at <= 5 else "left", no_wrap=at > 0, overflow="fold")
    for name, status, *rest in lines:
        state = cell(status, STYLES.get(status, "yellow"))
        table.add_row(cell(name), state, *map(cell, rest[: len(widths) - 2]))
    console.print(table)
    for entry in entries:
        for remark in (*entry.faults, *entry.notes):
            console.print(cell(f"{entry.name}: {remark}"))


def is_same(value: Any, wanted: str) -> bool:
    """Whether a setting has the value that someone typed: 1e-3 is 0.001."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(wanted) == value
    if value is None:
        return wanted in ("null", "none", "None", "")
    return format_value(value) == wanted.strip("[]").replace(" ", "")


def steps_in_words(entry: Entry) -> str:
    """The step, and the last one where it is another."""
    if entry.step is None:
        return "–"
    return (
        f"{entry.step:,}"
        if entry.step == entry.max_steps or not entry.max_steps
        else f"{entry.step:,}/{entry.max_steps:,}"
    )


def ago(seconds: float) -> str:
    """A time that has passed, in its largest unit: 12 s, 5 min, 3 h, 2 d."""
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _entry(run: Run, now: float) -> Entry:
    found = figures.of(run)
    faults = [*run.faults, *([found.fault] if found.fault else [])]
    if run.status == "failed" and run.summary.get("error"):
        faults.append(str(run.summary["error"]))
    return Entry(
        name=run.name,
        path=str(run.path),
        status=run.status,
        step=found.step,
        max_steps=figures.max_steps(run),
        best_val_loss=found.best_val_loss,
        bits_per_byte=found.bits_per_byte,
        choices=run.choices,
        age=now - _last_write(run),
        faults=list(dict.fromkeys(faults)),
        notes=list(run.notes),
    )


def _last_write(run: Run) -> float:
    files = RunDirectory(run.path)
    times = []
    for path in (files.metrics, files.summary, files.config):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)
