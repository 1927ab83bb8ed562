"""`nanolm compare`: compare runs in a table, or as JSON, CSV or Markdown."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable

from nanolm import option_types as types
from nanolm import shell, terminal
from nanolm.analysis import comparison as comparisons
from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison
from nanolm.analysis.comparison_formats import as_csv, as_dict, as_markdown, styled_rows
from nanolm.analysis.comparison_table import fit_columns, make_columns, make_remarks
from nanolm.cli.arguments import add_runs
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.option_types import Parser


def add_arguments(parser: Parser) -> None:
    parser.describe("Runs that differ only in their seed are one row, with mean and 95% confidence interval.")
    add_runs(parser)
    help_text = "metrics to show, separated by commas; rows are ranked by the first"
    parser.add("--metric", check=types.names, default=[], metavar="NAMES", help=help_text)
    help_text = "sort by a metric (best first) or a setting (ascending) (default: the first metric)"
    parser.add("--sort", check=types.nonempty, metavar="COLUMN", help=help_text)
    help_text = "group by these settings and show the best run of each group"
    parser.add("--by", check=types.names, default=[], metavar="KEYS", help=help_text)
    help_text = "show tokens and seconds needed for this validation loss"
    parser.add("--target", check=types.LOSS, metavar="LOSS", help=help_text)
    form = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("json", "print one JSON object"),
        ("csv", "print CSV with exact values"),
        ("markdown", "print the whole table as Markdown"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, default="table", help=help_text)
    # What became `nanolm scaling`.
    parser.add_argument("--fit", action="store_true", help=argparse.SUPPRESS)


def run(arguments: Namespace) -> None:
    if arguments.fit:
        command = shell.join("nanolm", "scaling", *map(shell.path_argument, arguments.runs))
        raise SettingsError("--fit is not an option of nanolm compare", where="--fit", hint=f"use {command}")
    comparison = comparisons.compare(
        find(arguments.runs),
        metrics=arguments.metric,
        sort=arguments.sort,
        by=arguments.by,
        target=arguments.target,
    )
    PRINTERS[arguments.form](comparison)


def _print_table(comparison: Comparison) -> None:
    from rich.text import Text

    from nanolm.tables import Console, Table

    console = Console()
    columns, hidden = fit_columns(make_columns(comparison), console.width - 2)
    table = Table([column.heading for column in columns], "".join("r" if one.is_numeric else "l" for one in columns))
    for at, (cells, style) in enumerate(styled_rows(columns, comparison), start=1):
        table.add_row(*map(Text, cells), style=style, end_section=at == len(comparison.rows))
    console.print(table)
    for remark in make_remarks(comparison, hidden):
        console.print(Text(remark))


def _print_csv(comparison: Comparison) -> None:
    terminal.write(as_csv(comparison))
    for note in comparison.notes:
        terminal.say(note)


PRINTERS: dict[str, Callable[[Comparison], None]] = {
    "table": _print_table,
    "json": lambda comparison: print(dump_json(as_dict(comparison))),
    "csv": _print_csv,
    "markdown": lambda comparison: print(as_markdown(comparison)),
}
