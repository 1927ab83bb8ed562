"""`nanolm diff`: show the settings in which two runs differ."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from nanolm import option_types as types
from nanolm.analysis.collection import plain_settings
from nanolm.analysis.names import short_names
from nanolm.cli.arguments import add_json
from nanolm.config.roles import affects_results
from nanolm.errors import NanolmError, raise_all
from nanolm.files import user_path
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.run_layout import is_run_folder
from nanolm.runs.directory import RunDirectory
from nanolm.wording import format_value

# Keys of summary.json that say what a run was made with.
MADE_WITH = ("corpus", "tokenizer", "device", "precision", "ranks")
ABSENT = "absent"
# Digits of a hash that are shown.
HASH_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two runs or files.

    Attributes:
        path: the run directory or the file.
        settings: by dotted key.
        made_with: versions, commit and fingerprints by dotted key; empty for a file.
    """

    path: Path
    settings: dict[str, Any]
    made_with: dict[str, Any]


# By key, the value on both sides; ABSENT if a side does not have it.
Pairs = dict[str, tuple[Any, Any]]


def add_arguments(parser: Parser) -> None:
    parser.describe("For runs, also compares versions, commit, device and data.")
    parser.add("first", check=types.nonempty, metavar="A", help="a run directory or a config.yaml")
    parser.add("second", check=types.nonempty, metavar="B", help="another run directory or config.yaml")
    parser.add_argument("--all", action="store_true", help="show equal settings too")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the differences, or with --all every setting.

    Raises:
        RunError: a run or file is missing or damaged; both problems are reported.
    """
    problems: list[NanolmError] = []
    sides: list[Side] = []
    for path in (arguments.first, arguments.second):
        try:
            sides.append(read_side(path))
        except NanolmError as error:
            problems.append(error)
    raise_all(problems)
    first, second = sides
    settings = _pairs(first.settings, second.settings, arguments.all)
    made_with = _pairs(first.made_with, second.made_with, arguments.all) if first.made_with and second.made_with else {}
    if arguments.json:
        print(dump_json({"settings": settings, "made_with": made_with}))
    else:
        _print_tables(sides, settings, made_with, arguments.all)


def read_side(path: str) -> Side:
    """Read a run directory, or a YAML file of settings.

    Raises:
        RunError: the path is neither.
    """
    if (file := user_path(path)).is_file():
        # The user's own file may be a link, and one of a run only to another file of the run.
        file = file if is_run_folder(file.parent) else Path(os.path.realpath(file))
        return Side(file, plain_settings(file), {})
    directory = RunDirectory(path).require()
    summary = directory.read_summary()
    made_with = {name: ABSENT if (value := getattr(summary, name)) is None else value for name in MADE_WITH}
    for group in ("choices", "versions", "git"):
        made_with |= {f"{group}.{name}": value for name, value in getattr(summary, group).items()}
    return Side(directory.path, plain_settings(directory.config), made_with)


def _pairs(first: dict[str, Any], second: dict[str, Any], includes_equal: bool) -> Pairs:
    pairs = {key: (first.get(key, ABSENT), second.get(key, ABSENT)) for key in {**first, **second}}
    return {key: pair for key, pair in pairs.items() if includes_equal or pair[0] != pair[1]}


def _print_tables(sides: list[Side], settings: Pairs, made_with: Pairs, shows_all: bool) -> None:
    from nanolm.tables import Console, Table, cell

    console = Console()
    names = short_names([side.path for side in sides])
    # Settings that do not affect the results.
    minor = [] if shows_all else [key for key in settings if not affects_results(key)]
    settings = {key: pair for key, pair in settings.items() if key not in minor}
    for title, pairs in (("setting", settings), ("made with", made_with)):
        if pairs:
            table = Table([title, *names], "lll")
            for key, (first, second) in pairs.items():
                table.add_row(key, _format(first), _format(second), style="dim" if first == second else "")
            console.print(table)
    if all(first == second for first, second in settings.values()):
        console.print("no setting that affects the results differs" if minor else "no setting differs")
    if minor:
        console.print(cell(f"settings that differ without affecting the results: {', '.join(minor)} (--all)"))


def _format(value: Any) -> str:
    if value is None:
        return "null"
    text = format_value(value)
    is_hash = len(text) in (40, 64) and set(text) <= set("0123456789abcdef")
    return text[:HASH_DIGITS] if is_hash else text
