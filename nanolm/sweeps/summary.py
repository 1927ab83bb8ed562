"""The summary of a sweep: a table of its jobs, and the commands to type next."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from nanolm import shell
from nanolm.analysis.collection import note_of
from nanolm.analysis.comparability import incomparable
from nanolm.sweeps.planning import Job, comparison_metric
from nanolm.sweeps.states import DONE, Report, State
from nanolm.tables import Console, Table, cell
from nanolm.wording import ESTIMATE, ESTIMATE_NOTE

# Rows of a readable table; of a longer one, only the best half of them and the failed jobs are shown.
MAX_ROWS = 40


def ranked(jobs: Sequence[Job], reports: Sequence[Report]) -> list[tuple[Job, Report, bool]]:
    """Sort jobs: the best first, then those with incomparable losses (True), then those without a loss."""
    metric = comparison_metric(jobs)

    def rank(row: tuple[Job, Report, bool]) -> tuple[bool, bool, float]:
        _, report, is_odd = row
        value = getattr(report.summary, metric)
        return value is None, is_odd, value or 0.0

    return sorted(zip(jobs, reports, incomparable([report.summary for report in reports]), strict=True), key=rank)


def print_summary(
    jobs: Sequence[Job],
    reports: Sequence[Report],
    directory: Path,
    n_done_before: int,
    max_hours: float | None = None,
) -> None:
    """Print a table of the jobs, the number of jobs in each state, and the commands to type next.

    Args:
        n_done_before: number of jobs that were done before this sweep started.
        max_hours: sweep.max_hours if they are over, so that the jobs that were not begun are listed.
    """
    order = ranked(jobs, reports)
    rows = [
        (job, report, is_odd)
        for place, (job, report, is_odd) in enumerate(order)
        if len(order) <= MAX_ROWS or place < MAX_ROWS // 2 or _is_bad(report)
    ]
    table = Table([f"run in {directory}", "status", "steps", "val loss", "bits/byte"], "llrrr")
    for place, (job, report, is_odd) in enumerate(rows):
        loss, bits = report.summary.best_val_loss, report.summary.bits_per_byte
        sign = ESTIMATE * (report.summary.best_val_sample is not None)
        table.add_row(
            job.run.path.name,
            cell(report.state.value, "red" if _is_bad(report) else ""),
            f"{report.summary.steps_done:,}",
            cell("" if loss is None else f"{sign}{loss:.4f}", "bold" if place == 0 else ""),
            "" if bits is None else f"{sign}{bits:.4f}{'†' * is_odd}",
        )
    console = Console()
    console.print(table)
    if len(rows) < len(order):
        console.print(f"  and {len(order) - len(rows)} more without errors\n")
    for job, report, _ in rows:
        if report.state in DONE and (note := note_of(job.run.path)):
            console.print(cell(f"  {job.run.path.name}: {note}"))
    if any(report.summary.best_val_sample is not None for _, report, _ in rows):
        console.print(f"  {ESTIMATE_NOTE}\n")
    if any(is_odd for _, _, is_odd in order):
        console.print("  † not comparable: the mask is not causal, or <unk> hides text\n")
    counts = collections.Counter(report.state for report in reports)
    total = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    before = f"; {n_done_before} were done before" if n_done_before else ""
    console.print(f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {total}{before}")
    not_begun = [job for job, report in zip(jobs, reports, strict=True) if report.state is State.new]
    if max_hours is not None and not_begun:
        _print_not_begun(not_begun, max_hours)
    if any(report.state not in (*DONE, State.pruned) for report in reports):
        console.print("resume     the same command again runs what is missing")
    compare = shell.join("nanolm", "compare", shell.path_argument(directory))
    console.print(cell(f"compare    {compare}"), soft_wrap=True)


def _print_not_begun(jobs: Sequence[Job], max_hours: float) -> None:
    """List the jobs that were not begun when the time of the sweep was over."""
    console = Console()
    text = f"sweep.max_hours={max_hours:g} is over: {len(jobs)} job{'s were' if len(jobs) != 1 else ' was'} not begun"
    console.print(cell(f"{text}:"))
    for job in jobs:
        console.print(cell(f"  {job.label}"), soft_wrap=True)


def _is_bad(report: Report) -> bool:
    return report.state in (State.failed, State.diverged)
