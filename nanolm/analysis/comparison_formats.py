"""A comparison as plain values, CSV, Markdown and HTML."""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Iterator, Sequence
from typing import Any

from nanolm.analysis.comparison import Comparison
from nanolm.analysis.comparison_table import Column, make_columns, make_remarks
from nanolm.analysis.differences import Difference
from nanolm.analysis.metrics import METRICS
from nanolm.csv_text import csv_line
from nanolm.wording import format_value

# CSS of the cells of a row, by its style.
STYLES = {"bold": "font-weight:600", "dim": "opacity:.65", "": ""}


def styled_rows(columns: Sequence[Column], comparison: Comparison) -> Iterator[tuple[Sequence[str], str]]:
    """Yield the cells of each row with its style: bold for the best of several rows, dim for the baselines."""
    n_rows = len(comparison.rows)
    for at, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
        is_best = at < n_rows and comparison.rows[at].is_best and n_rows > 1
        yield cells, "dim" if at >= n_rows else "bold" if is_best else ""


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return plain values; each metric has its mean, interval and the values per seed."""
    return {
        "ranked_by": comparison.metrics[0],
        "point": comparison.point,
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
                "difference": None if row.difference is None else as_difference(row.difference),
                "seeds_needed": row.seeds_needed,
                "is_interpolated": row.is_interpolated,
                "estimated": sorted(row.sampled),
                "n_reached": None if comparison.target is None else row.n_reached,
                "figures": {name: dataclasses.asdict(row.estimates[name]) for name in comparison.metrics},
            }
            for row in comparison.rows
        ],
        "baselines": [dataclasses.asdict(baseline) for baseline in comparison.baselines],
        "notes": comparison.notes,
    }


def as_difference(difference: Difference) -> dict[str, Any]:
    """Return a difference as plain values, with the name of its test."""
    return {"method": difference.method, **dataclasses.asdict(difference)}


def as_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one flat record per row, with settings and metrics as values; baselines come last.

    `row` has the names of the runs, or of the baseline.
    """
    spread = [name for name in comparison.metrics if METRICS[name].is_of_loss]
    records: list[dict[str, Any]] = [
        {
            "row": " ".join(run.name for run in row.runs),
            **row.settings,
            "status": row.status,
            "n_seeds": row.n_seeds,
            "best_of": row.best_of,
            "verdict": row.verdict,
            "p_value": row.p_value,
            **{name: row.estimates[name].mean for name in comparison.metrics},
            **{f"{name}_interval": row.estimates[name].interval for name in spread},
        }
        for row in comparison.rows
    ]
    for baseline in comparison.baselines:
        values = dict.fromkeys(("val_loss", "best_val_loss"), baseline.loss)
        values |= dict.fromkeys(("bits_per_byte", "best_bits_per_byte"), baseline.bits_per_byte)
        records.append({"row": baseline.name} | {name: values[name] for name in comparison.metrics if name in values})
    return records


def as_csv(comparison: Comparison) -> str:
    """Return exact values, one row per line; baselines have their name in the first column."""
    keys = list(dict.fromkeys(key for row in comparison.rows for key in row.settings))
    head = ["row", *keys, "status", "n_seeds", "best_of", "verdict", "p_value", *comparison.metrics]
    head += [f"{name}_interval" for name in comparison.metrics if METRICS[name].is_of_loss]

    def cell(name: str, value: Any) -> Any:
        return value if name not in keys else "" if value is None else format_value(value)

    lines = [csv_line(cell(name, record.get(name)) for name in head) for record in as_records(comparison)]
    return "\n".join([csv_line(head), *lines])


def as_markdown(comparison: Comparison) -> str:
    """Return the whole table and its remarks."""
    columns = make_columns(comparison)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"

    def escape(text: str) -> str:
        return re.sub(r"([|*_<\\])", r"\\\1", text)

    lines = [
        line([column.title for column in columns]),
        line(["---:" if column.is_numeric else "---" for column in columns]),
    ]
    for cells, style in styled_rows(columns, comparison):
        mark = "**" if style == "bold" else ""
        lines.append(line([f"{mark}{escape(cell)}{mark}" if cell else "" for cell in cells]))
    return "\n".join([*lines, *(f"\n{escape(remark)}" for remark in make_remarks(comparison, []))])


def as_html(comparison: Comparison) -> str:
    """Return the whole table and its remarks for a notebook, without scripts."""
    columns = make_columns(comparison)

    def line(tag: str, cells: Sequence[str], style: str = "") -> str:
        aligned = zip(cells, ("right" if column.is_numeric else "left" for column in columns), strict=True)
        content = (f'<{tag} style="text-align:{side};{style}">{html.escape(cell)}</{tag}>' for cell, side in aligned)
        return f"<tr>{''.join(content)}</tr>"

    head = line("th", [column.title for column in columns])
    body = "".join(line("td", cells, STYLES[style]) for cells, style in styled_rows(columns, comparison))
    remarks = "".join(f'<p style="opacity:.75">{html.escape(remark)}</p>' for remark in make_remarks(comparison, []))
    return f'<div style="overflow-x:auto"><table><thead>{head}</thead><tbody>{body}</tbody></table>{remarks}</div>'
