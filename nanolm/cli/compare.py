"""`nanolm compare`: runs side by side, as a table that fits the terminal, or as JSON, CSV or Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from nanolm import terminal
from nanolm.analysis import comparison
from nanolm.analysis.collection import find, short_keys
from nanolm.analysis.comparison import METRICS, TO_TARGET, Comparison, Estimate, Reference, Row
from nanolm.json_text import dump_json
from nanolm.terminal import visible
from nanolm.wording import MISSING, format_value, short_number

# What is shown where there is room for it, in this order; what is not listed always is.
OPTIONAL = (
    "best_of",
    "bits_per_byte",
    "tokens",
    "seconds_to_target",
    "parameters",
    "seconds",
    "best_ema_val_loss",
    "final_val_loss",
    "flops",
    "tokens_per_second",
    "perplexity",
    "run",
)
# Settings in one column, where they would take a larger part of the width in columns of their own.
SETTINGS_SHARE = 0.45
# Of the name of a run that stands where others have their settings.
NAME_CHARACTERS = 18


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of text.

    Attributes:
        name: setting, metric, or a word of its own.
        heading: over it; a line end where it is broken.
        cells: one a row, those of the reference lines last.
        narrow: the same in fewer words, for a narrow terminal; none: there are no fewer.
        is_setting: one of those that tell rows apart.
        is_figure: set to the right.
        is_judged: what the rows are judged by, which is never left out.
    """

    name: str
    heading: str
    cells: list[str]
    is_setting: bool = False
    is_figure: bool = True
    is_judged: bool = False
    narrow: list[str] | None = None

    @property
    def width(self) -> int:
        """Characters of its widest line."""
        return max(len(line) for text in [self.heading, *self.cells] for line in text.split("\n"))

    @property
    def title(self) -> str:
        """The heading in one line."""
        return self.heading.replace("-\n", "").replace("\n/", "/").replace("\n", " ")


def show(found: Comparison, form: str = "table") -> None:
    """Prints a comparison.

    Args:
        found: the comparison.
        form: table, json, csv or markdown.
    """
    FORMS[form](found)


def cells_of(found: Comparison) -> list[Column]:
    """Every column of the table, whatever its width."""
    rows, references = found.rows, found.references
    n_lines = len(rows) + len(references)
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    short = short_keys(keys)
    columns = [
        Column(
            key,
            visible(short[key]),
            [_setting(row.settings.get(key)) for row in rows],
            is_setting=True,
            is_figure=False,
        )
        for key in keys
    ]
    names = [visible(row.runs[0].name) if len(row.runs) == 1 else f"{len(row.runs)} runs" for row in rows]
    if not columns:
        columns = [Column("name", "run", names, is_setting=True, is_figure=False)]
    else:
        for at, row in enumerate(rows):
            if not row.runs[0].settings:
                columns[0].cells[at] = _shortened(visible(row.runs[0].name))
        if all(len(row.runs) == 1 for row in rows):
            columns.append(Column("run", "run", names, is_figure=False))
    if any(row.status != "completed" for row in rows):
        statuses = ["" if row.status == "completed" else visible(row.status) for row in rows]
        narrow = [status.replace(", ", "\n") for status in statuses] + [""] * len(references)
        columns.append(Column("status", "status", statuses, is_figure=False, narrow=narrow))
    if any(row.n_seeds > 1 for row in rows):
        columns.append(Column("seeds", "seeds", [str(row.n_seeds) for row in rows]))
    if found.by:
        columns.append(Column("best_of", "best\nof", [str(row.best_of) for row in rows]))
    for at, name in enumerate(found.metrics):
        heading = (
            METRICS[name].heading.format(target=found.target) if found.target is not None else METRICS[name].heading
        )
        cells = [_figure(name, row, found) for row in rows]
        if any(cell != MISSING for cell in cells):
            lines = [_reference(name, line) for line in references]
            narrow = [_narrow(cell, is_judged=at == 0) for cell in cells] + lines
            columns.append(Column(name, heading, cells + lines, is_judged=at == 0, narrow=narrow))
        if at == 0 and any(row.p_value is not None for row in rows):
            columns.append(Column("verdict", "told apart\nfrom best", [_verdict(row) for row in rows], is_figure=False))
    padded = [
        dataclasses.replace(column, cells=column.cells + [""] * (n_lines - len(column.cells))) for column in columns
    ]
    for at, line in enumerate(references, start=len(rows)):
        padded[0].cells[at] = visible(line.name)
    return padded


def fitted(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """The columns that there is room for, and the names of those that there is none for."""
    columns = list(columns)
    settings = [column for column in columns if column.is_setting]
    if len(settings) > 1 and sum(column.width + 2 for column in settings) > SETTINGS_SHARE * width:
        columns = [_folded(settings, round(SETTINGS_SHARE * width)), *(c for c in columns if not c.is_setting)]
    if _width(columns) > width:
        columns = [dataclasses.replace(column, cells=column.narrow or column.cells) for column in columns]
    kept = {column.name for column in columns if column.name not in OPTIONAL or column.is_judged} | {columns[0].name}
    if _width([column for column in columns if column.name in kept | set(OPTIONAL[:2])]) > width:
        # A second line for the interval takes less than a figure.
        broken = [[cell.replace(" ±", "\n±") for cell in column.cells] for column in columns]
        columns = [dataclasses.replace(column, cells=cells) for column, cells in zip(columns, broken, strict=True)]
    for name in OPTIONAL:
        if _width([column for column in columns if column.name in kept | {name}]) <= width:
            kept.add(name)
    left_out = [column.title for column in columns if column.name not in kept]
    return [column for column in columns if column.name in kept], left_out


def _width(columns: Sequence[Column]) -> int:
    """Characters of a line of the table, two of them behind each column."""
    return sum(column.width + 2 for column in columns)


def _shortened(name: str) -> str:
    """The end of a name, which is where runs differ."""
    return name if len(name) <= NAME_CHARACTERS else f"…{name[1 - NAME_CHARACTERS :]}"


def _narrow(cell: str, is_judged: bool) -> str:
    """Without the interval of a loss that is not judged, and broken before what is in brackets."""
    cell = cell.replace(" (", "\n(")
    if is_judged or "±" not in cell:
        return cell
    marks = cell[len(cell.rstrip("†*")) :]
    return cell.split(" ±")[0] + marks


def _setting(value: Any) -> str:
    return visible(format_value(value))


def _folded(settings: Sequence[Column], width: int) -> Column:
    """Several settings in one column, as words that are broken between settings."""
    n_rows = len(settings[0].cells)
    cells = []
    for at in range(n_rows):
        values = [(column.heading, column.cells[at]) for column in settings]
        is_row = any(value for _, value in values[1:])
        words = [f"{name}={value}" for name, value in values if value != MISSING] if is_row else [values[0][1]]
        lines = [""]
        for word in words:
            joined = f"{lines[-1]} {word}".strip()
            if len(joined) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(word)
        cells.append("\n".join(lines))
    return Column("settings", "settings", cells, is_setting=True, is_figure=False)


def _figure(name: str, row: Row, found: Comparison) -> str:
    estimate = row.estimates[name]
    if name in TO_TARGET:
        return _to_target(name, row, found)
    if estimate.mean is None:
        return MISSING
    if not METRICS[name].is_of_loss:
        return f"{estimate.mean:,.1f}" if name == "seconds" and estimate.mean < 100 else _amount(name, estimate.mean)
    mark = "†" * row.sees_future + "*" * (name == "bits_per_byte" and not row.is_lossless)
    return _with_interval(estimate, 2 if name == "perplexity" else 4) + mark


def _amount(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "seconds" else short_number(value)


def _with_interval(estimate: Estimate, digits: int) -> str:
    assert estimate.mean is not None
    mean = f"{estimate.mean:.{digits}f}"
    if estimate.mean >= 1e6:
        mean = f"{estimate.mean:.1e}"
    return mean if estimate.interval is None else f"{mean} ±{estimate.interval:.{digits}f}"


def _to_target(name: str, row: Row, found: Comparison) -> str:
    judged = "bits_per_byte" if found.metrics[0] == "bits_per_byte" else "best_val_loss"
    best = row.estimates[judged]
    if not best.values:
        return MISSING
    if not row.n_reached:
        # Rounded up: a best of 1.88001 is no 1.88.
        shown = f"{math.ceil(round(min(best.values) * 1e4, 6)) / 1e4:.4f}".rstrip("0").rstrip(".")
        return f"never (best {shown})" if name == TO_TARGET[0] else "never"
    mean = row.estimates[name].mean
    assert mean is not None
    cell = _amount("seconds", mean) if name == TO_TARGET[1] else short_number(mean)
    return cell if row.n_reached == row.n_seeds else f"{cell} ({row.n_reached} of {row.n_seeds})"


def _reference(name: str, line: Reference) -> str:
    if name == "bits_per_byte":
        return "" if line.bits_per_byte is None else f"{line.bits_per_byte:.4f}"
    if line.loss is None:
        return ""
    return {"best_val_loss": f"{line.loss:.4f}", "perplexity": f"{math.exp(line.loss):.2f}"}.get(name, "")


def _verdict(row: Row) -> str:
    p_value = "" if row.p_value is None else f"{row.p_value:.2g}" if row.p_value >= 1e-3 else f"{row.p_value:.0e}"
    p_value = p_value.replace("e-0", "e-")
    return {
        "best": "best",
        "apart": f"yes, {p_value}",
        "not apart": f"no, {p_value}",
        "one seed": "one seed",
        "does not compare": MISSING,
    }.get(row.verdict, "")


def _remarks(found: Comparison, left_out: Sequence[str]) -> list[str]:
    """What stands below the table."""
    remarks = [visible(note) for note in found.notes]
    of_loss = [name for name in found.metrics if METRICS[name].is_of_loss]
    if any(row.estimates[name].interval is not None for row in found.rows for name in of_loss):
        remarks.append("± half the 95% interval of the mean over seeds (Student's t)")
    judged = METRICS[found.metrics[0]].heading.replace("-\n", "").replace("\n", " ")
    judged = judged if found.target is None else judged.format(target=found.target)
    if any(row.p_value is not None for row in found.rows):
        remarks.append(
            f"told apart by {judged}: p under 0.05 of Welch's t test against the best, "
            "with Holm's correction for the number of rows"
        )
    elif sum(row.verdict in ("best", "one seed") for row in found.rows) > 1:
        remarks.append("one seed each: whether they differ beyond chance cannot be said (seed=1,2,3 trains three)")
    if found.by:
        remarks.append(f"each row the best of its {', '.join(found.by)}, of as many settings as stand under `best of`")
    if left_out:
        remarks.append(f"no room for {', '.join(left_out)}: a wider terminal, --json, --csv or --markdown has them")
    return remarks


def _print_table(found: Comparison) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from nanolm.tables import Console

    console = Console()
    columns, left_out = fitted(cells_of(found), console.width - 2)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(Text(column.heading), justify="right" if column.is_figure else "left", overflow="fold")
    for at, row in enumerate(found.rows):
        style = "bold" if row.is_best and len(found.rows) > 1 else ""
        table.add_row(*(Text(column.cells[at]) for column in columns), style=style)
    if found.references:
        table.add_section()
    for at in range(len(found.rows), len(found.rows) + len(found.references)):
        table.add_row(*(Text(column.cells[at]) for column in columns), style="dim")
    console.print(table)
    for remark in _remarks(found, left_out):
        console.print(Text(remark))


def _print_json(found: Comparison) -> None:
    print(dump_json(plain(found)))


def plain(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON has it: figures by metric, each with mean, interval and the values of its seeds."""
    return {
        "judged_by": found.metrics[0],
        "target": found.target,
        "by": list(found.by),
        "rows": [
            {
                "settings": row.settings,
                "runs": [{"name": run.name, "path": str(run.path), "status": run.status} for run in row.runs],
                "status": row.status,
                "n_seeds": row.n_seeds,
                "best_of": row.best_of,
                "lossless": row.is_lossless,
                "sees_future": row.sees_future,
                "verdict": row.verdict or None,
                "p_value": row.p_value,
                "n_reached": None if found.target is None else row.n_reached,
                "figures": {name: dataclasses.asdict(row.estimates[name]) for name in found.metrics},
            }
            for row in found.rows
        ],
        "references": [dataclasses.asdict(line) for line in found.references],
        "notes": found.notes,
    }


def _print_csv(found: Comparison) -> None:
    """Exact figures, one row a line; reference lines have their name in the first column."""
    keys = list(dict.fromkeys(key for row in found.rows for key in row.settings))
    spread = [name for name in found.metrics if METRICS[name].is_of_loss]
    head = ["row", *keys, "status", "n_seeds", "best_of", "verdict", "p_value", *found.metrics]
    head += [f"{name}_interval" for name in spread]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, restval="", lineterminator="\n")
    writer.writeheader()
    for row in found.rows:
        writer.writerow(
            {key: "" if value is None else format_value(value) for key, value in row.settings.items()}
            | {name: row.estimates[name].mean for name in found.metrics}
            | {f"{name}_interval": row.estimates[name].interval for name in spread}
            | {"row": " ".join(run.name for run in row.runs), "status": row.status, "n_seeds": row.n_seeds}
            | {"best_of": row.best_of, "verdict": row.verdict, "p_value": row.p_value}
        )
    for line in found.references:
        values = {"best_val_loss": line.loss, "bits_per_byte": line.bits_per_byte}
        writer.writerow({"row": line.name} | {name: values[name] for name in found.metrics if name in values})
    terminal.write(text.getvalue().removesuffix("\n"))
    for note in found.notes:
        terminal.say(note)


def _print_markdown(found: Comparison) -> None:
    columns = cells_of(found)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"

    def plain(text: str) -> str:
        """What Markdown would take for its own."""
        return re.sub(r"([|*_<\\])", r"\\\1", text)

    print(line([column.title for column in columns]))
    print(line(["---:" if column.is_figure else "---" for column in columns]))
    for at in range(len(columns[0].cells)):
        cells = [plain(column.cells[at]) for column in columns]
        is_best = at < len(found.rows) and found.rows[at].is_best and len(found.rows) > 1
        print(line([f"**{cell}**" if cell and is_best else cell for cell in cells]))
    for remark in _remarks(found, []):
        print(f"\n{plain(remark)}")


FORMS: dict[str, Callable[[Comparison], None]] = {
    "table": _print_table,
    "json": _print_json,
    "csv": _print_csv,
    "markdown": _print_markdown,
}


def compare(
    paths: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    sort: str | None = None,
    by: Sequence[str] = (),
    target: float | None = None,
    form: str = "table",
) -> None:
    """Finds runs, compares and prints them.

    Raises:
        RunError: a path has no run.
        SettingsError: as `comparison.compare`.
    """
    show(comparison.compare(find(paths), metrics=metrics, sort=sort, by=by, target=target), form)
