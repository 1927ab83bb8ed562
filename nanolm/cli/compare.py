"""`nanolm compare`: compare runs in a table, or as JSON, CSV or Markdown."""

from __future__ import annotations

import argparse
import dataclasses
import math
from argparse import Namespace
from collections.abc import Callable

from nanolm import option_types as types
from nanolm import shell, terminal
from nanolm.analysis import comparison as comparisons
from nanolm.analysis.collection import find
from nanolm.analysis.comparison import Comparison
from nanolm.analysis.comparison_formats import as_csv, as_dict, as_markdown, styled_rows
from nanolm.analysis.comparison_table import fit_columns, make_columns, make_remarks
from nanolm.analysis.gate import compare_with_baseline
from nanolm.analysis.judging import AXES, At
from nanolm.analysis.metrics import METRICS
from nanolm.analysis.pareto import mean_curves, pareto_front
from nanolm.analysis.verdicts import Detection, detect
from nanolm.cli.arguments import add_runs
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import short_number

# Curves and width of a plot in the terminal.
MAX_CURVES, MAX_WIDTH = 6, 100


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
    help_text = "read every loss at this cost: tokens=5M, flops=1e14, seconds=60 or step=1000"
    parser.add("--at", check=at_cost, metavar="COST=AMOUNT", help=help_text)
    help_text = "print how many seeds per row detect this difference with 80%% power"
    parser.add("--detect", check=types.DIFFERENCE, metavar="LOSS", help=help_text)
    help_text = "print and plot which row is the best at which cost: flops, tokens, seconds or step"
    parser.add("--pareto", check=cost, metavar="COST", help=help_text)
    help_text = "compare RUNS with this baseline: better (exit status 0), worse (3) or not distinguishable (4)"
    parser.add("--against", check=types.nonempty, metavar="BASE", help=help_text)
    help_text = "with --against: differences up to this one do not count (default: 0)"
    parser.add("--margin", check=types.MARGIN, metavar="LOSS", help=help_text)
    form = parser.add_mutually_exclusive_group()
    for name, help_text in (
        ("json", "print one JSON object"),
        ("csv", "print CSV with exact values"),
        ("markdown", "print the whole table as Markdown"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, default="table", help=help_text)
    # What became `nanolm scaling`.
    parser.add_argument("--fit", action="store_true", help=argparse.SUPPRESS)


def run(arguments: Namespace) -> int:
    """Print the comparison; return 0, or the exit status of the verdict against a baseline."""
    if arguments.fit:
        command = shell.join("nanolm", "scaling", *map(shell.path_argument, arguments.runs))
        raise SettingsError("--fit is not an option of nanolm compare", where="--fit", hint=f"use {command}")
    raise_all(_conflicts(arguments))
    if arguments.against is not None:
        return _gate(arguments)
    comparison = comparisons.compare(
        find(arguments.runs),
        metrics=arguments.metric,
        sort=arguments.sort,
        by=arguments.by,
        target=arguments.target,
        at=arguments.at,
    )
    if arguments.pareto is not None:
        _print_pareto(comparison, arguments.pareto, as_json=arguments.form == "json")
    elif arguments.detect is not None:
        found = detect(comparison.rows, comparison.metrics[0], arguments.detect)
        _print_detection(comparison, found, as_json=arguments.form == "json")
    else:
        PRINTERS[arguments.form](comparison)
    return 0


def at_cost(value: str) -> At:
    """Parse a cost such as tokens=5M.

    Raises:
        SettingsError: the cost is unknown, or not a number above 0.
    """
    axis, _, amount = value.partition("=")
    return At(cost(axis), types.amount(amount))


def cost(value: str) -> str:
    """Return the name of a cost.

    Raises:
        SettingsError: there is no such cost.
    """
    if value not in AXES:
        raise SettingsError(f"is {types.quote(value)}, which is not a cost", hint=f"one of: {', '.join(AXES)}")
    return value


def _conflicts(arguments: Namespace) -> list[NanolmError]:
    """Find options that cannot be combined."""
    problems: list[NanolmError] = []
    if arguments.margin is not None and arguments.against is None:
        problems.append(SettingsError("--margin needs --against", where="--margin", hint="--against BASE"))
    single = [name for name in ("against", "pareto", "detect") if getattr(arguments, name) is not None]
    others = [name for name in ("sort", "by", "target") if getattr(arguments, name)] if "against" in single else []
    others += [arguments.form] if single and arguments.form in ("csv", "markdown") else []
    if "pareto" in single and arguments.at is not None:
        others.append("at")
    if len(single) + len(others) > 1:
        listed = " and ".join(f"--{name}" for name in (*single, *others))
        problems.append(SettingsError(f"{listed} cannot be combined", where=listed, hint="use one of them"))
    if "against" in single and len(arguments.metric) > 1:
        problems.append(SettingsError("--against compares by one metric", where="--metric", hint="name one"))
    return problems


def _gate(arguments: Namespace) -> int:
    """Print the verdict on runs against a baseline, and return its exit status."""
    baseline = {run.path.resolve() for run in find([arguments.against])}
    runs = find([*arguments.runs, arguments.against])
    of_baseline = {run.path for run in runs if run.path.resolve() in baseline}
    metric = next(iter(arguments.metric), None)
    found = compare_with_baseline(runs, of_baseline, metric=metric, margin=arguments.margin or 0.0, at=arguments.at)
    if arguments.form == "json":
        print(dump_json(dataclasses.asdict(found)))
        return found.exit_status
    name = METRICS[found.metric].heading.format(point=found.point, best="best").replace("\n", " ")
    interval = "" if found.interval is None else "  95% interval {:+.4f} to {:+.4f}".format(*found.interval)
    print(f"{found.verdict}: {name} {found.effect:+.4f}{interval}")
    test = {
        "paired": f"paired over {found.n_seeds} seeds",
        "welch": f"Welch's t-test, {found.n_seeds} seeds or more a side",
    }
    print(f"runs {found.means[0]:.4f}, baseline {found.means[1]:.4f}; {test.get(found.method, 'one seed on a side')}")
    if found.seeds_needed:
        print(f"about {found.seeds_needed} seeds would be needed to see this difference")
    for note in found.notes:
        print(note)
    return found.exit_status


def _print_detection(comparison: Comparison, found: Detection, *, as_json: bool) -> None:
    if as_json:
        print(dump_json({"metric": comparison.metrics[0], **dataclasses.asdict(found)}))
        return
    spread = found.spread
    seeds = "more than 1,000" if found.seeds is None else str(found.seeds)
    kind = "of what seeds do not share" if spread.is_paired else "over seeds"
    print(f"{seeds} seeds per row detect a difference of {found.difference:g} with 80% power")
    print(
        f"standard deviation {kind}: {spread.value:.4g}, from {spread.n_rows} "
        f"{'row' if spread.n_rows == 1 else 'rows'} ({spread.freedom} degrees of freedom)"
    )
    if found.n_rows > 2:
        of_two = "more than 1,000" if found.seeds_of_two is None else found.seeds_of_two
        print(f"that is for choosing the best of {found.n_rows} rows; two rows alone need {of_two}")
    elif spread.n_rows == 1:
        print("that is for two rows that are not paired; rows that see the same batches usually need fewer")
    if not spread.agrees:
        print(f"the rows differ in their spread (Brown-Forsythe test, p = {spread.p_value:.2g}): this is their mean")


def _print_pareto(comparison: Comparison, axis: str, *, as_json: bool) -> None:
    curves = mean_curves(comparison.rows, axis, comparison.metrics[0])
    front = pareto_front(curves)
    if as_json:
        segments = [
            {"settings": comparison.rows[one.row].settings, **dataclasses.asdict(one), "row": one.row} for one in front
        ]
        print(dump_json({"cost": axis, "front": segments, "notes": comparison.notes}))
        return
    from rich.text import Text

    from nanolm.plotting import Curve, terminal_plot
    from nanolm.tables import Console, Table

    console = Console()
    on_front = list(dict.fromkeys(one.row for one in front))
    names = {row: comparison.rows[row].describe() for row in on_front}
    lines = [
        Curve([math.log10(cost) for cost in curves[row]], list(curves[row].values()), names[row])
        for row in on_front[:MAX_CURVES]
    ]
    unit = AXES[axis] if axis != "step" else "steps"
    metric = "val loss" if METRICS[comparison.metrics[0]].per_token else "bits per byte"
    label = lambda tick: short_number(10**tick)  # noqa: E731
    print(terminal_plot(lines, min(console.width, MAX_WIDTH), f"{unit} (log scale)", metric, label_x=label))
    table = Table([f"{unit}", "best row", metric], "rlr")
    for one in front:
        costs = " to ".join(dict.fromkeys(map(short_number, (one.start, one.end))))
        losses = " to ".join(dict.fromkeys(f"{loss:.4f}" for loss in (one.first_loss, one.last_loss)))
        table.add_row(*map(Text, (costs, names[one.row], losses)))
    console.print(table)
    console.print(
        Text("each line: evaluations that no other row reaches at the same or a lower cost (means over seeds)")
    )
    if len(on_front) > MAX_CURVES:
        console.print(Text(f"the plot shows the first {MAX_CURVES} of {len(on_front)} rows"))


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
