"""`nanolm compare`: compare runs in a table, or as JSON, CSV or Markdown."""

from __future__ import annotations

import argparse
import dataclasses
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nanolm import option_types as types
from nanolm import shell, terminal
from nanolm.analysis import comparison as comparisons
from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison
from nanolm.analysis.metrics import METRICS
from nanolm.cli.arguments import add_runs
from nanolm.cli.comparison_table import Column, fit_columns, make_columns, make_remarks
from nanolm.csv_text import csv_line
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import format_value


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
    for at, (cells, style) in enumerate(_styled_rows(columns, comparison), start=1):
        table.add_row(*map(Text, cells), style=style, end_section=at == len(comparison.rows))
    console.print(table)
    for remark in make_remarks(comparison, hidden):
        console.print(Text(remark))


def _styled_rows(columns: Sequence[Column], comparison: Comparison) -> Iterator[tuple[Sequence[str], str]]:
    """Yield the cells of each row with its style: bold for the best of several rows, dim for the baselines."""
    n_rows = len(comparison.rows)
    for at, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        is_best = at < n_rows and comparison.rows[at].is_best and n_rows > 1
        yield cells, "dim" if at >= n_rows else "bold" if is_best else ""


def _print_json(comparison: Comparison) -> None:
    """Print plain values; each metric has its mean, interval and the values per seed."""
    found = {
        "ranked_by": comparison.metrics[0],
        "target": comparison.target,
        "by": list(comparison.by),
        "rows": [
            {
                "settings": row.settings,
                "runs": [{"name": run.name, "path": str(run.path), "status": run.status} for run in row.runs],
                "status": row.status,
                "n_seeds": row.n_seeds,
                "best_of": row.best_of,
                "lossless": row.is_lossless,
                "is_noncausal": row.is_noncausal,
                "verdict": row.verdict or None,
                "p_value": row.p_value,
                "n_reached": None if comparison.target is None else row.n_reached,
                "figures": {name: dataclasses.asdict(row.estimates[name]) for name in comparison.metrics},
            }
            for row in comparison.rows
        ],
        "baselines": [dataclasses.asdict(baseline) for baseline in comparison.baselines],
        "notes": comparison.notes,
    }
    print(dump_json(found))


def _print_csv(comparison: Comparison) -> None:
    """Print exact values, one row per line; baselines have their name in the first column."""
    keys = list(dict.fromkeys(key for row in comparison.rows for key in row.settings))
    spread = [name for name in comparison.metrics if METRICS[name].is_of_loss]
    head = ["row", *keys, "status", "n_seeds", "best_of", "verdict", "p_value", *comparison.metrics]
    head += [f"{name}_interval" for name in spread]
    table: list[dict[str, Any]] = []
    for row in comparison.rows:
        table.append(
            {key: "" if value is None else format_value(value) for key, value in row.settings.items()}
            | {name: row.estimates[name].mean for name in comparison.metrics}
            | {f"{name}_interval": row.estimates[name].interval for name in spread}
            | {"row": " ".join(run.name for run in row.runs), "status": row.status, "n_seeds": row.n_seeds}
            | {"best_of": row.best_of, "verdict": row.verdict, "p_value": row.p_value}
        )
    for baseline in comparison.baselines:
        values = {"best_val_loss": baseline.loss, "bits_per_byte": baseline.bits_per_byte}
        table.append({"row": baseline.name} | {name: values[name] for name in comparison.metrics if name in values})
    lines = [csv_line(head), *(csv_line(cells.get(key) for key in head) for cells in table)]
    terminal.write("\n".join(lines))
    for note in comparison.notes:
        terminal.say(note)


def _print_markdown(comparison: Comparison) -> None:
    columns = make_columns(comparison)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"

    def escape(text: str) -> str:
        return re.sub(r"([|*_<\\])", r"\\\1", text)

    print(line([column.title for column in columns]))
    print(line(["---:" if column.is_numeric else "---" for column in columns]))
    for cells, style in _styled_rows(columns, comparison):
        mark = "**" if style == "bold" else ""
        print(line([f"{mark}{escape(cell)}{mark}" if cell else "" for cell in cells]))
    for remark in make_remarks(comparison, []):
        print(f"\n{escape(remark)}")


PRINTERS: dict[str, Callable[[Comparison], None]] = {
    "table": _print_table,
    "json": _print_json,
    "csv": _print_csv,
    "markdown": _print_markdown,
}
