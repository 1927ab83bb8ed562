"""Rows of a comparison: runs that differ only by seed."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from nanolm.analysis.collection import Run
from nanolm.analysis.comparability import incomparable, validation_texts
from nanolm.analysis.differences import Difference, Sample
from nanolm.analysis.metrics import METRICS, RunMetrics
from nanolm.analysis.names import short_keys
from nanolm.analysis.settings import nearest_column, varying_settings
from nanolm.analysis.statistics import Estimate, estimate
from nanolm.config.roles import affects_results
from nanolm.errors import SettingsError
from nanolm.runs.summary import FINISHED
from nanolm.wording import format_value

Measured = tuple[Run, RunMetrics]


@dataclasses.dataclass
class Row:
    """Runs that differ at most by their seed.

    Attributes:
        settings: the settings that distinguish it from other rows, by dotted key or config group.
        runs: all of its runs, whatever their status.
        n_seeds: number of seeds among the runs that are averaged: the completed ones, or all if none is completed.
        status: `completed`, or the number of runs with each status.
        by_seed: the metrics of the averaged runs by seed.
        batches: equal for rows that see the same batches with the same seed; None if that is unknown.
        estimates: by metric.
        n_reached: number of averaged seeds that reached the target.
        best_of: with grouping, the number of settings that it is the best of.
        is_interpolated: whether its judged loss is between two evaluations.
        sampled: the losses that are estimates over a part of the validation split, by name.
        is_lossless: False if <unk> hides text.
        is_noncausal: whether the mask attends to future tokens.
        is_comparable: whether its judged metric is comparable with other rows'.
        difference: to the best row; None if it cannot be tested.
        p_value: of equality with the best row, with Holm's correction.
        seeds_needed: number of seeds per row that would detect the measured difference with 80% power; None if the rows
            are distinguishable, or if it is above 1,000.
        verdict: `best` (of the comparable rows), `different`, `not distinguishable`, `one seed`, `incomparable`, or
            empty if the metric is unknown.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    n_seeds: int
    status: str
    by_seed: dict[Any, list[RunMetrics]]
    batches: str | None
    estimates: dict[str, Estimate]
    n_reached: int = 0
    best_of: int = 1
    is_interpolated: bool = False
    sampled: frozenset[str] = frozenset()
    is_lossless: bool = True
    is_noncausal: bool = False
    is_comparable: bool = True
    difference: Difference | None = None
    p_value: float | None = None
    seeds_needed: int | None = None
    verdict: str = ""

    @property
    def is_best(self) -> bool:
        """Whether it is the best of the comparable rows."""
        return self.verdict == "best"

    def sample(self, name: str) -> Sample:
        """Return its values of a metric by seed."""
        values = {seed: _mean(same_seed, name) for seed, same_seed in self.by_seed.items()}
        known = {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}
        return Sample(known, self.batches)

    def describe(self) -> str:
        """Return the settings that distinguish it, without those it lacks, or the name of its first run if none do."""
        known = {key: value for key, value in self.settings.items() if value is not None}
        if not known or not self.runs[0].settings:
            return self.runs[0].name
        short = short_keys(list(self.settings))
        return " ".join(f"{short[key]}={format_value(value)}" for key, value in known.items())


def group_seeds(
    measured: Sequence[Measured], by_run: dict[int, dict[str, Any]], differing: Iterable[str]
) -> list[list[Measured]]:
    """Group runs that differ only by their seed. A run without readable settings is its own group.

    Args:
        by_run: the settings that rows are grouped by, which may include the seed, by the id of the run.
        differing: the settings in which the runs differ.
    """
    keys = [key for key in differing if key != "seed" and affects_results(key)]
    groups: dict[str, list[Measured]] = {}
    for run, metrics in measured:
        values = [*by_run[id(run)].values(), *(run.settings.get(key) for key in keys)]
        group = run.settings and [values, run.validation_text, run.summary.tokenizer]
        groups.setdefault(repr(group or str(run.path)), []).append((run, metrics))
    return list(groups.values())


def make_row(group: Sequence[Measured], settings: dict[str, Any], batches: str | None) -> Row:
    """Make a row from the runs of a group; `batches` is as in Row."""
    runs = tuple(run for run, _ in group)
    counted = averaged(runs)
    by_seed: dict[Any, list[RunMetrics]] = {}
    for run, metrics in group:
        if run in counted:
            by_seed.setdefault(run.settings.get("seed", run.summary.seed), []).append(metrics)
    counts = Counter(run.status for run in runs)
    if len(counts) == 1:
        status = runs[0].status
    else:
        status = ", ".join(f"{counts[status]} {status}" for status in sorted(counts, key=lambda s: s != "completed"))
    estimates = {name: estimate([_mean(same_seed, name) for same_seed in by_seed.values()]) for name in METRICS}
    return Row(
        settings=dict(settings),
        runs=runs,
        n_seeds=len(by_seed),
        status=status,
        by_seed=by_seed,
        batches=batches,
        estimates=estimates,
        n_reached=len(estimates["tokens_to_target"].values),
        is_interpolated=any(metrics.is_interpolated for same_seed in by_seed.values() for metrics in same_seed),
        sampled=frozenset().union(*(metrics.sampled for same_seed in by_seed.values() for metrics in same_seed)),
        is_lossless=not any(run.summary.is_lossy for run in runs),
        is_noncausal=any(run.summary.is_noncausal for run in runs),
    )


def averaged(runs: Sequence[Run]) -> list[Run]:
    """The runs that are averaged: the finished ones, or all if none is finished."""
    return [run for run in runs if run.status in FINISHED] or list(runs)


def _mean(measured: Sequence[RunMetrics], name: str) -> float | None:
    values = [value for metrics in measured if (value := getattr(metrics, name)) is not None]
    return statistics.fmean(values) if values else None


def best_of_groups(rows: Sequence[Row], judged: str, by: Sequence[str]) -> list[Row]:
    """The best row of each group; the settings that it was chosen by are part of it.

    Not the mean: a setting that suits one group may not suit another, and a mean depends on the grid that was tried.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.settings[key] for key in by]), []).append(row)
    if any(len(validation_texts([run for row in group for run in row.runs])) > 1 for group in groups.values()):
        raise SettingsError(
            "--by chooses the best of each group, but some group has several validation texts",
            where="--by",
            hint="name the runs of one text, or leave out --by",
        )
    chosen = []
    for group in groups.values():
        best = min(group, key=lambda row: (not row.is_comparable, rank(row, judged)))
        best.best_of = len(group)
        chosen.append(best)
    return chosen


def add_varying_settings(rows: Sequence[Row]) -> None:
    """Add the settings that distinguish the rows to those that they are grouped by."""
    varying = varying_settings([row.runs[0] for row in rows]) if len(rows) > 1 else {}
    for at, row in enumerate(rows):
        row.settings |= {key: values[at] for key, values in varying.items() if key not in ("seed", *row.settings)}


def flag_incomparable(rows: Sequence[Row], judged: str, texts_differ: bool) -> None:
    """Set whether the judged metric of each row is comparable with that of the others."""
    is_of_loss = METRICS[judged].is_of_loss
    flags = incomparable([row.runs[0].summary for row in rows])
    for row, is_incomparable in zip(rows, flags, strict=True):
        row.is_comparable = bool(row.runs[0].settings) and not (is_of_loss and (is_incomparable or texts_differ))


def sorted_rows(rows: Sequence[Row], column: str) -> list[Row]:
    """Sort rows by a metric, best first, or by a setting, ascending."""
    if column in METRICS:
        # Runs without readable settings come last, whatever their metrics; those not judged by their best loss.
        return sorted(rows, key=lambda row: (not row.runs[0].settings, rank(row, column), rank(row, "best_val_loss")))
    keys = {key.rsplit(".", 1)[-1]: key for row in rows for key in row.settings}
    keys |= {key: key for row in rows for key in row.settings}
    if column not in keys:
        raise SettingsError(
            f"there is no column {column!r} to sort by", where="--sort", hint=nearest_column(column, [*METRICS, *keys])
        )
    return sorted(rows, key=lambda row: _order(row.settings[keys[column]]))


def rank(row: Row, name: str) -> float:
    """Return a sort key that puts the best value of a metric first, and unknown ones last."""
    mean = row.estimates[name].mean
    if mean is None or math.isnan(mean):
        return math.inf
    return -mean if METRICS[name].more_is_better else mean


def _order(value: Any) -> tuple[int, float, str]:
    """A sort key that puts numbers before strings and None last."""
    if value is None:
        return (2, 0.0, "")
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, str(value))
