"""The columns of a table of compared runs, and how they fit the width of a terminal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from nanolm.analysis.baselines import Baseline
from nanolm.analysis.comparison import Comparison
from nanolm.analysis.differences import Difference
from nanolm.analysis.metrics import IN_BITS, MAX_EXPONENT, METRICS, TO_TARGET
from nanolm.analysis.names import short_keys
from nanolm.analysis.rows import Row
from nanolm.terminal import visible
from nanolm.wording import ESTIMATE, MISSING, format_value, short_number

# Columns shown only if there is room, by priority; all others are always shown.
OPTIONAL = (
    "best_of",
    "difference",
    "bits_per_byte",
    "best_val_loss",
    "seeds_needed",
    "tokens",
    "seconds_to_target",
    "parameters",
    "trained_parameters",
    "seconds",
    "best_ema_val_loss",
    "final_val_loss",
    "best_bits_per_byte",
    "flops",
    "tokens_per_second",
    "perplexity",
    "run",
)
# Share of the width above which settings are folded into one column.
SETTINGS_SHARE = 0.45
# Length limit of a run's name in a column of settings.
NAME_CHARACTERS = 18


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: a setting, a metric, or the column's identifier.
        heading: may contain line breaks.
        cells: one per row, with the baselines last.
        is_setting: whether it is a setting in which rows differ.
        is_numeric: whether it is right-aligned.
        is_ranking: whether rows are ranked by it; such a column is never hidden.
        narrow: shorter cells for a narrow terminal; None if there are none.
    """

    name: str
    heading: str
    cells: list[str]
    is_setting: bool = False
    is_numeric: bool = True
    is_ranking: bool = False
    narrow: list[str] | None = None

    @property
    def width(self) -> int:
        """Length of its longest line."""
        return max(len(line) for text in [self.heading, *self.cells] for line in text.split("\n"))

    @property
    def title(self) -> str:
        """The heading on one line."""
        return one_line(self.heading)


def make_columns(comparison: Comparison) -> list[Column]:
    """Return every column of the table, regardless of its width."""
    rows, references = comparison.rows, comparison.baselines
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    short = short_keys(keys)
    columns = []
    for key in keys:
        values = [visible(format_value(row.settings.get(key))) for row in rows]
        columns.append(Column(key, visible(short[key]), values, is_setting=True, is_numeric=False))
    names = [visible(row.runs[0].name) if len(row.runs) == 1 else f"{len(row.runs)} runs" for row in rows]
    if not columns:
        columns = [Column("name", "run", names, is_setting=True, is_numeric=False)]
    else:
        for at, row in enumerate(rows):
            if not row.runs[0].settings:
                columns[0].cells[at] = _shorten(visible(row.runs[0].name))
        if all(len(row.runs) == 1 for row in rows):
            columns.append(Column("run", "run", names, is_numeric=False))
    if any(row.status != "completed" for row in rows):
        statuses = ["" if row.status == "completed" else visible(row.status) for row in rows]
        narrow = [status.replace(", ", "\n") for status in statuses] + [""] * len(references)
        columns.append(Column("status", "status", statuses, is_numeric=False, narrow=narrow))
    if any(row.n_seeds > 1 for row in rows):
        columns.append(Column("seeds", "seeds", [str(row.n_seeds) for row in rows]))
    if comparison.by:
        columns.append(Column("best_of", "best\nof", [str(row.best_of) for row in rows]))
    for at, name in enumerate(comparison.metrics):
        cells = [_figure(name, row, comparison) for row in rows]
        heading = comparison.heading(name)
        if name == "final_val_loss" and comparison.point == "final":
            # The same numbers as the judged loss.
            continue
        if any(cell != MISSING for cell in cells):
            baselines = [_format_baseline(name, baseline) for baseline in references]
            narrow = [_narrow(cell, is_ranking=at == 0) for cell in cells] + baselines
            columns.append(Column(name, heading, cells + baselines, is_ranking=at == 0, narrow=narrow))
        if at == 0 and any(row.p_value is not None for row in rows):
            columns.append(Column("verdict", "differs\nfrom best", [_verdict(row) for row in rows], is_numeric=False))
            columns.append(Column("difference", "difference\nto best", [_difference(row) for row in rows]))
            if any(row.seeds_needed for row in rows):
                needed = [f"~{row.seeds_needed}" if row.seeds_needed else "" for row in rows]
                columns.append(Column("seeds_needed", "seeds\nneeded", needed))
    for column in columns:
        column.cells.extend([""] * (len(rows) + len(references) - len(column.cells)))
    columns[0].cells[len(rows) :] = [visible(baseline.name) for baseline in references]
    return columns


def fit_columns(columns: Sequence[Column], width: int) -> tuple[list[Column], list[str]]:
    """Fold settings, shorten cells and hide columns until the table fits a width.

    Returns:
        The columns to show, and the titles of the hidden ones.
    """
    columns = list(columns)
    settings = [column for column in columns if column.is_setting]
    if len(settings) > 1 and _width(settings) > SETTINGS_SHARE * width:
        columns = [_fold(settings, round(SETTINGS_SHARE * width)), *(c for c in columns if not c.is_setting)]
    if _width(columns) > width:
        columns = [dataclasses.replace(column, cells=column.narrow or column.cells) for column in columns]
    kept = {column.name for column in columns if column.name not in OPTIONAL or column.is_ranking} | {columns[0].name}
    if _width([column for column in columns if column.name in kept | set(OPTIONAL[:2])]) > width:
        # Move the interval to a second line before hiding columns.
        broken = [[cell.replace(" ±", "\n±") for cell in column.cells] for column in columns]
        columns = [dataclasses.replace(column, cells=cells) for column, cells in zip(columns, broken, strict=True)]
    for name in OPTIONAL:
        if _width([column for column in columns if column.name in kept | {name}]) <= width:
            kept.add(name)
    hidden = [column.title for column in columns if column.name not in kept]
    return [column for column in columns if column.name in kept], hidden


def _width(columns: Sequence[Column]) -> int:
    """Return the width of the table; two characters separate columns."""
    return sum(column.width + 2 for column in columns)


def _shorten(name: str) -> str:
    """Keep the end of a name: runs differ there."""
    return name if len(name) <= NAME_CHARACTERS else f"…{name[1 - NAME_CHARACTERS :]}"


def _narrow(cell: str, is_ranking: bool) -> str:
    """Break a cell before a parenthesis, and drop the interval unless rows are ranked by it."""
    cell = cell.replace(" (", "\n(")
    if is_ranking or "±" not in cell:
        return cell
    marks = cell[len(cell.rstrip("†*")) :]
    return cell.split(" ±")[0] + marks


def _fold(settings: Sequence[Column], width: int) -> Column:
    """Join several settings to one column of key=value, broken between settings."""
    cells = []
    for values in zip(*(column.cells for column in settings), strict=True):
        named = zip(settings, values, strict=True)
        is_row = any(values[1:])
        pairs = [f"{one.heading}={value}" for one, value in named if value != MISSING] if is_row else [values[0]]
        lines = [""]
        for pair in pairs:
            joined = f"{lines[-1]} {pair}".strip()
            if len(joined) <= width or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(pair)
        cells.append("\n".join(lines))
    return Column("settings", "settings", cells, is_setting=True, is_numeric=False)


def _figure(name: str, row: Row, comparison: Comparison) -> str:
    mean, interval = row.estimates[name].mean, row.estimates[name].interval
    if name in TO_TARGET:
        return _to_target(name, row, comparison)
    if mean is None:
        return MISSING
    if name == "seconds":
        return f"{mean:,.1f}" if mean < 100 else f"{mean:,.0f}"
    if not METRICS[name].is_of_loss:
        return short_number(mean)
    digits = 2 if name == "perplexity" else 4
    cell = f"{mean:.1e}" if mean >= 1e6 else f"{mean:.{digits}f}"
    if interval is not None:
        cell += f" ±{interval:.{digits}f}"
    is_between = name in ("val_loss", "bits_per_byte", "perplexity") and row.is_interpolated
    return (
        ESTIMATE * (name in row.sampled)
        + "~" * is_between
        + cell
        + "†" * row.is_noncausal
        + "*" * (name in IN_BITS and not row.is_lossless)
    )


def _to_target(name: str, row: Row, comparison: Comparison) -> str:
    best = row.estimates["best_bits_per_byte" if comparison.metrics[0] in IN_BITS else "best_val_loss"]
    if not best.values:
        return MISSING
    if not row.n_reached:
        # Round up, so that a best loss of 1.88001 is not shown as having reached 1.88.
        best_shown = f"{math.ceil(round(min(best.values) * 1e4, 6)) / 1e4:.4f}".rstrip("0").rstrip(".")
        return f"never (best {best_shown})" if name == TO_TARGET[0] else "never"
    mean = row.estimates[name].mean
    assert mean is not None
    cell = f"{mean:,.0f}" if name == TO_TARGET[1] else short_number(mean)
    return cell if row.n_reached == row.n_seeds else f"{cell} ({row.n_reached} of {row.n_seeds})"


def _format_baseline(name: str, baseline: Baseline) -> str:
    if name in ("bits_per_byte", "best_bits_per_byte"):
        return "" if baseline.bits_per_byte is None else f"{baseline.bits_per_byte:.4f}"
    if baseline.loss is None:
        return ""
    perplexity = math.exp(min(baseline.loss, MAX_EXPONENT))
    loss = f"{baseline.loss:.4f}"
    return {"val_loss": loss, "best_val_loss": loss, "perplexity": f"{perplexity:.2f}"}.get(name, "")


def _difference(row: Row) -> str:
    return "" if row.difference is None else f"{row.difference.effect:+.4f} ±{row.difference.interval:.4f}"


def _verdict(row: Row) -> str:
    p_value = "" if row.p_value is None else f"{row.p_value:.2g}" if row.p_value >= 1e-3 else f"{row.p_value:.0e}"
    p_value = "<1e-9" if row.p_value is not None and row.p_value < 1e-9 else p_value.replace("e-0", "e-")
    return {
        "best": "best",
        "different": f"yes, {p_value}",
        "not distinguishable": f"no, {p_value}",
        "one seed": "one seed",
        "incomparable": MISSING,
    }.get(row.verdict, "")


def make_remarks(comparison: Comparison, hidden: Sequence[str]) -> list[str]:
    """Return the notes below the table, one of which names the hidden columns."""
    rows, remarks = comparison.rows, [visible(note) for note in comparison.notes]
    of_loss = [name for name in comparison.metrics if METRICS[name].is_of_loss]
    if any(row.estimates[name].interval is not None for row in rows for name in of_loss):
        remarks.append("±: half-width of the 95% confidence interval of the mean over seeds (Student's t)")
    if any(row.p_value is not None for row in rows):
        remarks.append(describe_tests(comparison))
    elif sum(row.verdict in ("best", "one seed") for row in rows) > 1:
        remarks.append("one seed per row: differences cannot be tested for significance (seed=1,2,3 trains three)")
    if any(row.seeds_needed for row in rows):
        remarks.append("seeds needed: about as many per row would detect the measured difference with 80% power")
    if comparison.by:
        remarks.append(f"each row is the best setting of its {', '.join(comparison.by)}; `best of` counts the settings")
    if hidden:
        remarks.append(
            f"columns hidden (terminal too narrow): {', '.join(hidden)}; use --json, --csv or --markdown to see them"
        )
    return remarks


def describe_tests(comparison: Comparison) -> str:
    """Describe the tests of the rows against the best one."""
    metric = one_line(comparison.heading(comparison.metrics[0]))
    found = [row.difference for row in comparison.rows if row.difference is not None]
    tests = dict.fromkeys(map(_describe_test, found))
    text = f"differs from best: {' or '.join(tests)} of {metric}; p < 0.05 with Holm's correction"
    return text + " for choosing the best of the rows" * (len(found) > 1)


def _describe_test(difference: Difference) -> str:
    test = "t-test paired by seed" if difference.is_paired else "t-test" if difference.pooled else "Welch's t-test"
    if difference.pooled is None:
        return test
    rows, freedom, p_value = difference.pooled.n_rows, difference.pooled.freedom, difference.pooled.p_value
    about = f"{freedom} degrees of freedom, Brown-Forsythe test of equal spreads p = {p_value:.2g}"
    return f"{test} with the spread of {rows} rows ({about})"


def one_line(heading: str) -> str:
    """Return a column heading without line breaks."""
    return heading.replace("-\n", "").replace("\n/", "/").replace("\n", " ")
