"""`nanolm diff`: the settings that two runs differ in, and what else may be why their numbers do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nanolm.analysis.collection import plain_settings
from nanolm.config.roles import is_quiet
from nanolm.errors import NanolmError, raise_all
from nanolm.files import user_path
from nanolm.json_text import dump_json
from nanolm.runs.directory import RunDirectory
from nanolm.wording import format_value

# Of a summary: what a run was made with and on.
MADE_WITH = ("corpus", "tokenizer", "device", "precision", "ranks")
ABSENT = "not there"
# A fingerprint needs no more to be told from another.
SHOWN_CHARACTERS = 16


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        path: as it was named.
        settings: by dotted key.
        made_with: versions, commit and fingerprints by dotted key; empty for a file of settings.
    """

    path: Path
    settings: dict[str, Any]
    made_with: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A setting, or something that a run was made with, in both; ABSENT where one does not have it."""

    key: str
    first: Any
    second: Any

    @property
    def is_one(self) -> bool:
        """Whether there is a difference."""
        return self.first != self.second


def read(path: str) -> Side:
    """A run directory, or a YAML file of settings.

    Raises:
        RunError: there is neither.
    """
    if (file := user_path(path)).is_file():
        return Side(file, plain_settings(file), {})
    run = RunDirectory(path).require()
    summary = run.read_summary()
    made_with = {name: summary.get(name, ABSENT) for name in MADE_WITH}
    for group in ("choices", "versions", "git"):
        made_with |= {f"{group}.{name}": value for name, value in (summary.get(group) or {}).items()}
    return Side(run.path, plain_settings(run.config), made_with)


def side_by_side(first: dict[str, Any], second: dict[str, Any]) -> list[Difference]:
    """Every key of either, in order."""
    return [
        Difference(key, first.get(key, ABSENT), second.get(key, ABSENT)) for key in dict.fromkeys([*first, *second])
    ]


def show(first: str, second: str, everything: bool = False, as_json: bool = False) -> None:
    """Prints what differs, or with `everything` every setting.

    Raises:
        RunError: one of the two is not there or damaged; both problems at once.
    """
    problems: list[NanolmError] = []
    sides: list[Side] = []
    for path in (first, second):
        try:
            sides.append(read(path))
        except NanolmError as error:
            problems.append(error)
    raise_all(problems)
    settings = side_by_side(sides[0].settings, sides[1].settings)
    made_with = side_by_side(sides[0].made_with, sides[1].made_with) if all(side.made_with for side in sides) else []
    quiet = [] if everything else [one for one in settings if one.is_one and is_quiet(one.key)]
    if not everything:
        settings = [one for one in settings if one.is_one]
        made_with = [one for one in made_with if one.is_one]
    if as_json:
        parts = {"settings": settings, "made_with": made_with}
        print(dump_json({name: {one.key: [one.first, one.second] for one in part} for name, part in parts.items()}))
        return
    _print_tables(sides, [one for one in settings if one not in quiet], quiet, made_with)


def _print_tables(
    sides: list[Side], settings: list[Difference], quiet: list[Difference], made_with: list[Difference]
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from nanolm.analysis.collection import short_names
    from nanolm.tables import Console, cell

    console = Console()
    names = short_names([side.path for side in sides])
    for title, differences in (("setting", settings), ("made with", made_with)):
        if differences:
            table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for heading in (title, *names):
                table.add_column(cell(heading), overflow="fold")
            for one in differences:
                style = "" if one.is_one else "dim"
                table.add_row(*map(cell, (one.key, _value(one.first), _value(one.second))), style=style)
            console.print(table)
    if not any(one.is_one for one in settings):
        console.print("no setting differs" + (" that changes a number" if quiet else ""))
    if quiet:
        console.print(cell(f"and what changes no number: {', '.join(one.key for one in quiet)} (--all)"))


def _value(value: Any) -> str:
    if value is None:
        return "null"
    text = format_value(value)
    is_hash = len(text) in (40, 64) and set(text) <= set("0123456789abcdef")
    return text[:SHOWN_CHARACTERS] if is_hash else text
