"""The summary of a sweep: a table of its jobs, and the commands to type next."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from nanolm import shell
from nanolm.analysis.collection import note_of
from nanolm.analysis.comparability import incomparable
from nanolm.runs.directory import display_path
from nanolm.sweeps.planning import Job, comparison_metric
from nanolm.sweeps.states import DONE, Report, State

# Rows of a readable table; of a longer one, only the best half of them and the failed jobs are shown.
MAX_ROWS = 40


def ranked(jobs: Sequence[Job], reports: Sequence[Report]) -> list[tuple[Job, Report]]:
    """Sort jobs: the best first, then those with incomparable losses, then those without a loss."""
    metric = comparison_metric(jobs)
    values = [getattr(report.summary, metric) for report in reports]
    is_odd = incomparable([report.summary for report in reports])
    ranks = [(value is None, odd, value or 0.0) for value, odd in zip(values, is_odd, strict=True)]
    return [(jobs[at], reports[at]) for at in sorted(range(len(jobs)), key=ranks.__getitem__)]


def print_summary(jobs: Sequence[Job], reports: Sequence[Report], directory: Path, n_done_before: int) -> None:
    """Print a table of the jobs, the number of jobs in each state, and the commands to type next.

    Args:
        jobs: jobs of the sweep.
        reports: the state of each job.
        directory: directory of the sweep.
        n_done_before: number of jobs that were done before this sweep started.
    """
    from nanolm.tables import Console, Table, cell

    order = ranked(jobs, reports)
    is_odd = incomparable([report.summary for _, report in order])
    rows = [
        (job, report, "†" * odd)
        for place, ((job, report), odd) in enumerate(zip(order, is_odd, strict=True))
        if len(order) <= MAX_ROWS or place < MAX_ROWS // 2 or _is_bad(report)
    ]
    table = Table([f"run in {display_path(directory)}", "status", "steps", "val loss", "bits/byte"], "llrrr")
    for place, (job, report, mark) in enumerate(rows):
        loss, bits = report.summary.best_val_loss, report.summary.bits_per_byte
        table.add_row(
            job.run.path.name,
            cell(report.state.value, "red" if _is_bad(report) else ""),
            f"{report.summary.steps_done:,}",
            cell("" if loss is None else f"{loss:.4f}", "bold" if place == 0 else ""),
            "" if bits is None else f"{bits:.4f}{mark}",
        )
    console = Console()
    console.print(table)
    if len(rows) < len(order):
        console.print(f"  and {len(order) - len(rows)} more without errors\n")
    for job, report, _ in rows:
        if report.state in DONE and (note := note_of(job.run.path)):
            console.print(cell(f"  {job.run.path.name}: {note}"))
    if any(is_odd):
        console.print("  † not comparable: the mask is not causal, or <unk> hides text\n")
    counts = collections.Counter(report.state for report in reports)
    total = ", ".join(f"{counts[state]} {state.value}" for state in State if counts[state])
    before = f"; {n_done_before} were done before" if n_done_before else ""
    console.print(f"{len(jobs)} job{'s' * (len(jobs) != 1)}: {total}{before}")
    if any(report.state not in (State.completed, State.diverged, State.pruned) for report in reports):
        console.print("resume     the same command again runs what is missing")
    compare = shell.join("nanolm", "compare", shell.path_argument(display_path(directory)))
    console.print(cell(f"compare    {compare}"), soft_wrap=True)


def _is_bad(report: Report) -> bool:
    return report.state in (State.failed, State.diverged)
