"""How a sweep ended: a table of its jobs, and where to look next."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from nanolm import shell
from nanolm.analysis.collection import note_of
from nanolm.analysis.comparison import odd_ones
from nanolm.runs.directory import shown
from nanolm.sweeps.planning import Job, measure
from nanolm.sweeps.states import DONE, Report, State
from nanolm.terminal import visible

# Rows of a table that is still read; of a longer one the best are shown, and all that went wrong.
ROWS = 40


def ranked(jobs: Sequence[Job], reports: Sequence[Report]) -> list[tuple[Job, Report]]:
    """The best first, then those that do not compare, and those without a figure last."""
    figure = measure(jobs)
    odd = odd_ones([report.summary for report in reports])

    def place(at: int) -> tuple[bool, bool, float]:
        value = getattr(reports[at].summary, figure)
        return value is None, odd[at], value or 0.0

    return [(jobs[at], reports[at]) for at in sorted(range(len(jobs)), key=place)]


def print_summary(jobs: Sequence[Job], reports: Sequence[Report], directory: Path, before: int) -> None:
    """Prints the jobs, how many ended in which way, and what to type next.

    Args:
        before: how many were done before this sweep began.
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    from nanolm.tables import Console

    console = Console()
    table = Table(box=SIMPLE_HEAD)
    table.add_column("run in " + escape(visible(str(shown(directory)))), overflow="fold")
    table.add_column("state")
    table.add_column("steps", justify="right")
    table.add_column("val loss", justify="right")
    table.add_column("bits/byte", justify="right")
    order = ranked(jobs, reports)
    odd = odd_ones([report.summary for _, report in order])
    rows = [
        (job, report, is_odd)
        for place, ((job, report), is_odd) in enumerate(zip(order, odd, strict=True))
        if len(order) <= ROWS or place < ROWS // 2 or _went_wrong(report)
    ]
    for place, (job, report, is_odd) in enumerate(rows):
        loss, bits = report.summary.best_val_loss, report.summary.bits_per_byte
        table.add_row(
            escape(visible(job.run.path.name)),
            f"[red]{report.state.value}[/]" if _went_wrong(report) else report.state.value,
            f"{report.summary.steps_done:,}",
            "" if loss is None else f"[bold]{loss:.4f}[/]" if place == 0 else f"{loss:.4f}",
            "" if bits is None else f"{bits:.4f}" + ("†" if is_odd else ""),
        )
    console.print(table)
    if len(rows) < len(order):
        console.print(f"  and {len(order) - len(rows)} more, none of which went wrong\n")
    for job, report, _ in rows:
        if report.state in DONE and (note := note_of(job.run.path)):
            console.print(Text(visible(f"  {job.run.path.name}: {note}")))
    if any(odd):
        console.print("  † does not compare: its mask sees the future, or <unk> hides text\n")
    counts = collections.Counter(report.state for report in reports)
    total = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    console.print(
        f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {total}" + (f"; {before} were done before" if before else "")
    )
    if any(report.state not in (State.completed, State.diverged, State.pruned) for report in reports):
        console.print("go on      the same line again runs what is missing")
    compare = shell.join("nanolm", "compare", shell.path_argument(shown(directory)))
    console.print(Text(f"compare    {compare}"), soft_wrap=True)


def _went_wrong(report: Report) -> bool:
    return report.state in (State.failed, State.diverged)
