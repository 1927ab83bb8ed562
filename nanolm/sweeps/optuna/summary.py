"""The summary of a study: its trials as a table of jobs, the best of them, and what pruning saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nanolm import shell
from nanolm.sweeps.optuna.study import OpenStudy, n_impossible
from nanolm.sweeps.planning import Job
from nanolm.sweeps.states import Report, State
from nanolm.sweeps.summary import print_summary
from nanolm.tables import Console, cell


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state of a trial that was started."""

    number: int
    job: Job
    report: Report
    is_over: bool


def print_study(outcomes: Sequence[Outcome], opened: OpenStudy, n_over_before: int) -> None:
    """Print the trials as the jobs of a sweep, the best trial, and the tokens that pruning saved.

    Args:
        outcomes: the trials; two with the same values are one job.
        n_over_before: number of trials that were over before.
    """
    unique = list({outcome.job.key: outcome for outcome in outcomes}.values())
    if unique:
        reports = [outcome.report for outcome in unique]
        print_summary([outcome.job for outcome in unique], reports, opened.folder, n_over_before)
    console = Console()
    if n_skipped := n_impossible(opened.trials()):
        trials = "trial" if n_skipped == 1 else "trials"
        console.print(f"skipped    {n_skipped} {trials} whose settings do not fit together")
    results = [outcome for outcome in unique if outcome.report.value is not None]
    if results:
        best = min(results, key=lambda outcome: outcome.report.value or 0.0)
        console.print(cell(f"best       trial {best.number}: {best.job.label}"), soft_wrap=True)
    spent, full = trained_tokens(unique)
    if spent and opened.settings.prunes:
        console.print(f"tokens     {spent:,}, {spent / full:.0%} of the {full:,} without pruning")
    if pruned := next((outcome for outcome in unique if outcome.report.state is State.pruned), None):
        resume = shell.resume_command(pruned.job.run.path)
        console.print(cell(f"unprune    {resume}  (or any other pruned run)"), soft_wrap=True)


def trained_tokens(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Return the number of tokens that runs were trained on, and the number if all were trained to their end.

    The end of a diverged run is where it diverged.
    """
    spent, full = 0, 0.0
    for outcome in outcomes:
        tokens, step = outcome.report.summary.tokens or 0, outcome.report.summary.steps_done
        spent += tokens
        is_final = outcome.report.state is State.diverged or not step
        max_steps = outcome.job.config.trainer.max_steps or outcome.report.summary.max_steps or step
        full += tokens * (1.0 if is_final else max_steps / step)
    return spent, round(full)
