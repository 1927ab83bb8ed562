"""One verdict on a change: whether runs are better or worse than those of a baseline."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path

from nanolm.analysis.collection import Run
from nanolm.analysis.comparability import batch_settings, comparability, incomparable, validation_texts
from nanolm.analysis.differences import Difference, find_differences
from nanolm.analysis.judging import At, judge
from nanolm.analysis.metrics import METRICS, measure
from nanolm.analysis.power import seeds_needed
from nanolm.analysis.rows import Measured, Row, averaged, group_seeds, make_row
from nanolm.analysis.settings import differing_settings, nearest_column
from nanolm.analysis.verdicts import why_unpaired
from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.runs.summary import FINISHED, STOPPED_EARLY

BETTER, WORSE, UNDECIDED = "better", "worse", "not distinguishable"
# Exit status of `nanolm compare --against`; 1 and 2 are those of errors.
EXIT_STATUS = {BETTER: 0, WORSE: 3, UNDECIDED: 4}
SIDES = ("RUNS", "--against")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A comparison of runs with a baseline.

    Attributes:
        verdict: better, worse or not distinguishable.
        metric: the loss that is compared; lower is better.
        point: where a validation loss was read.
        effect: mean of the runs minus mean of the baseline.
        interval: its 95% confidence interval; None with one seed on a side.
        margin: differences up to it do not count.
        p_value: of equal means; None with one seed.
        method: the test: paired or welch; empty with one seed.
        n_seeds: number of pairs, or of seeds of the side that has fewer.
        seeds_needed: number of seeds that would detect the measured difference with 80% power; None if it is found, or
            above 1,000.
        means: of the runs and of the baseline.
        runs, baseline: names of the runs.
        notes: remarks for the user.
    """

    verdict: str
    metric: str
    point: str
    effect: float
    interval: tuple[float, float] | None
    margin: float
    p_value: float | None
    method: str
    n_seeds: int
    seeds_needed: int | None
    means: tuple[float, float]
    runs: tuple[str, ...]
    baseline: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def exit_status(self) -> int:
        """0 for better, 3 for worse, 4 for not distinguishable."""
        return EXIT_STATUS[self.verdict]


def compare_with_baseline(
    runs: Sequence[Run],
    baseline: Collection[Path],
    *,
    metric: str | None = None,
    margin: float = 0.0,
    at: At | None = None,
) -> Verdict:
    """Compare the runs of one setting with those of a baseline, which may have the same settings.

    Args:
        runs: of both sides.
        baseline: the directories of the baseline.
        metric: a loss of METRICS; None for the loss on the test split if every run has it, else the validation loss.
        margin: a difference counts if its confidence interval is beyond it.
        at: the cost at which the validation loss is read; None for the last step that all share.

    Raises:
        SettingsError: the losses are not comparable, or the metric is not a loss.
        RunError: a side has no completed run, or runs of several settings.
    """
    measured = [measure(run) for run in runs]
    sides = {id(run): {"side": SIDES[run.path in baseline]} for run, _ in measured}
    differing = differing_settings([run for run, _ in measured])
    groups = group_seeds(measured, sides, differing)
    by_side = {side: [group for group in groups if sides[id(group[0][0])]["side"] == side] for side in SIDES}
    notes, problem = comparability(runs)
    raise_all([*_problems(by_side, differing), *_incomparable(runs, metric, problem)])
    judged = judge([by_side[side][0] for side in SIDES], at)
    kind = "test" if judged.has_test else "val"
    name = (
        metric
        or {"test": ("test_loss", "test_bits_per_byte"), "val": ("val_loss", "bits_per_byte")}[kind][bool(problem)]
    )
    batches = [batch_settings(group[0][0], differing) for group in judged.groups]
    rows = [
        make_row(group, {}, None if settings is None else repr(settings))
        for group, settings in zip(judged.groups, batches, strict=True)
    ]
    run_sample, base_sample = (row.sample(name) for row in rows)
    raise_all(
        [
            RunError(f"the runs of {side} have no {name}", where=side, hint="choose another with --metric")
            for side, sample in zip(SIDES, (run_sample, base_sample), strict=True)
            if not sample.values
        ]
    )
    (difference,), _ = find_differences(base_sample, [run_sample])
    means = tuple(statistics.fmean(sample.values.values()) for sample in (run_sample, base_sample))
    notes = [*notes, *judged.notes, *_notes(rows, difference)]
    names = [tuple(run.name for run in averaged(row.runs)) for row in rows]
    effect = means[0] - means[1] if difference is None else difference.effect
    interval = None if difference is None else (effect - difference.interval, effect + difference.interval)
    verdict = _decide(interval, margin)
    needed = None
    if difference is not None and verdict == UNDECIDED and abs(effect) > margin:
        needed = seeds_needed(abs(effect) - margin, difference.spread, is_paired=difference.is_paired)
        needed = None if needed is None else max(needed, difference.n_seeds + 1)
    return Verdict(
        verdict=verdict,
        metric=name,
        point=judged.point,
        effect=effect,
        interval=interval,
        margin=margin,
        p_value=None if difference is None else difference.p_value,
        method="" if difference is None else difference.method,
        n_seeds=min(len(run_sample.values), len(base_sample.values)) if difference is None else difference.n_seeds,
        seeds_needed=needed,
        means=(means[0], means[1]),
        runs=names[0],
        baseline=names[1],
        notes=tuple(notes),
    )


def _decide(interval: tuple[float, float] | None, margin: float) -> str:
    if interval is None:
        return UNDECIDED
    low, high = interval
    return BETTER if high < -margin else WORSE if low > margin else UNDECIDED


def _problems(
    by_side: dict[str, list[list[Measured]]], differing: Sequence[str] | dict[str, list[object]]
) -> list[NanolmError]:
    """Find a side that is not one setting with at least one completed run."""
    problems: list[NanolmError] = []
    for side, groups in by_side.items():
        runs = [run for group in groups for run, _ in group]
        if not runs:
            problems.append(
                RunError(
                    "every run is also one of the baseline" if side == SIDES[0] else "the baseline has no runs",
                    where=side,
                    hint="name a folder with other runs",
                )
            )
        elif len(groups) > 1:
            keys = [
                key for key in differing if key != "seed" and len({repr(run.settings.get(key)) for run in runs}) > 1
            ]
            problems.append(
                RunError(
                    f"the runs of {side} have {len(groups)} settings: they differ in {', '.join(keys) or 'tokens'}",
                    where=side,
                    hint="name the runs of one setting, which differ only in their seed",
                )
            )
        elif not any(run.status in FINISHED for run in runs):
            listed = ", ".join(f"{run.name} ({run.status})" for run in runs)
            problems.append(
                RunError(f"the runs of {side} are not completed: {listed}", where=side, hint="resume or repeat them")
            )
    return problems


def _incomparable(runs: Sequence[Run], metric: str | None, problem: str | None) -> list[NanolmError]:
    problems: list[NanolmError] = []
    if metric is not None and not (metric in METRICS and METRICS[metric].is_of_loss):
        losses = [name for name in METRICS if METRICS[name].is_of_loss]
        problems.append(SettingsError(f"{metric} is not a loss", where="--metric", hint=nearest_column(metric, losses)))
    elif metric is not None and problem is not None and METRICS[metric].per_token:
        problems.append(
            SettingsError(
                f"{metric} is a loss per token, and {problem}", where="--metric", hint="--metric bits_per_byte"
            )
        )
    if len(validation_texts(runs)) > 1:
        problems.append(
            SettingsError(f"{problem}: they are not comparable", where="--against", hint="name runs on the same text")
        )
    elif any(incomparable([run.summary for run in runs])):
        problems.append(
            SettingsError(
                "the masks of some runs attend to future tokens, or their tokenizers hide text behind <unk>",
                where="--against",
                hint="compare runs of the same kind",
            )
        )
    return problems


def _notes(rows: Sequence[Row], difference: Difference | None) -> list[str]:
    notes = [
        f"left out, as they are not completed: {', '.join(f'{run.name} ({run.status})' for run in left_out)}"
        for row in rows
        if (left_out := [run for run in row.runs if run not in averaged(row.runs)])
    ]
    if stopped := [run.name for row in rows for run in averaged(row.runs) if run.status == STOPPED_EARLY]:
        notes.append(f"stopped early (trainer.early_stop), and counted as completed: {', '.join(stopped)}")
    if difference is None:
        return [*notes, "one seed on a side: the difference cannot be tested (seed=1,2,3 trains three)"]
    if not difference.is_paired:
        notes.append(f"not paired by seed, as {why_unpaired(rows[1], rows[0])}")
    elif difference.n_unpaired:
        notes.append(f"{difference.n_unpaired} seeds have no partner on the other side, and are left out")
    if difference.effect == 0 and difference.interval == 0:
        notes.append("all losses are equal: check that the change has an effect")
    return notes
