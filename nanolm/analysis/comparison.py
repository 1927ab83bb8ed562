"""Rows of runs that differ only by seed, compared by a metric."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nanolm.analysis.baselines import Baseline, collect_baselines
from nanolm.analysis.collection import Run
from nanolm.analysis.comparability import NONCAUSAL, comparability, incomparable, validation_text, validation_texts
from nanolm.analysis.metrics import METRICS, TO_TARGET, RunMetrics, compute_metrics, metrics_to_target
from nanolm.analysis.settings import differing_settings, nearest_column, values_of, varying_settings
from nanolm.analysis.statistics import LEVEL, Estimate, estimate, holm_adjust, welch_p_value
from nanolm.config.roles import affects_results
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.wording import LOSSY


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ at most by their seed.

    Attributes:
        settings: the settings that distinguish it from other rows, by dotted key or config group.
        runs: all of its runs, whatever their status.
        n_seeds: number of seeds among the runs that are averaged: the completed ones, or all if none is completed.
        status: `completed`, or the number of runs with each status.
        estimates: by metric.
        n_reached: number of averaged seeds that reached the target.
        best_of: with grouping, the number of settings that it is the best of.
        is_lossless: False if <unk> hides text.
        is_noncausal: whether the mask attends to future tokens.
        is_comparable: whether its judged metric is comparable with other rows'.
        is_best: whether it is the best of the comparable rows.
        p_value: of equality with the best row, by Welch's t-test with Holm's correction for the number of rows that are
            tested against it; None if the test is impossible.
        verdict: `best`, `different`, `not different`, `one seed`, `incomparable`, or empty if the metric is unknown.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    n_seeds: int
    status: str
    estimates: dict[str, Estimate]
    n_reached: int = 0
    best_of: int = 1
    is_lossless: bool = True
    is_noncausal: bool = False
    is_comparable: bool = True
    is_best: bool = False
    p_value: float | None = None
    verdict: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The contents of a comparison table.

    Attributes:
        metrics: names of the metrics to show; rows are judged by the first.
        by: the keys that rows are grouped by.
        target: a loss, or bits per byte if rows are judged by these.
        notes: remarks for the user.
    """

    metrics: tuple[str, ...]
    rows: list[Row]
    baselines: list[Baseline]
    by: tuple[str, ...]
    target: float | None
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A run, its metrics, and the same by name including the metrics to a target."""

    run: Run
    metrics: RunMetrics
    values: dict[str, float | None]

    @property
    def seed(self) -> Any:
        return self.run.settings.get("seed", self.run.summary.seed)


def compare(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = (),
    sort: str | None = None,
    by: Sequence[str] = (),
    target: float | None = None,
) -> Comparison:
    """Compare runs, with those that differ only by their seed as one row.

    With grouping, each group of rows is represented by its best row, so that each side of a comparison is tuned
    separately. Losses per token are left out if tokenizers or validation texts differ.

    Args:
        metrics: names of METRICS, rows are judged by the first; empty for all, judged by the best validation loss.
        sort: a metric (best first), setting or config group (ascending); None sorts by the judged metric.
        by: settings or config groups to group rows by.
        target: validation loss to reach, in bits per byte if rows are judged by these; None for no target.

    Raises:
        SettingsError: a metric, column or setting is unknown, or the target is of losses that are not comparable.
    """
    _require_metrics(metrics, sort, target)
    notes, problem = comparability(runs)
    if problem is not None and sort in METRICS and METRICS[sort].per_token:
        raise SettingsError(f"{sort} is a loss per token, and {problem}", where="--sort", hint="--sort bits_per_byte")
    chosen = _choose_metrics(metrics, only_bits=problem is not None, has_target=target is not None)
    judged = chosen[0]
    if problem is not None and target is not None and list(metrics[:1]) != ["bits_per_byte"]:
        raise SettingsError(
            f"--target {target:g} is a loss per token, and {problem}",
            where="--target",
            hint="give it in bits per byte: --metric bits_per_byte --target ...",
        )
    measured, faults = _measure(runs, target, "bits_per_byte" if judged == "bits_per_byte" else "loss")
    by_values = dict(values_of(name, runs) for name in by)
    by_run = {id(run): tuple(values[index] for values in by_values.values()) for index, run in enumerate(runs)}
    rows = [_row(group) for group in _group_seeds(measured, by_run)]
    rows = _with_settings(rows, list(by_values), by_run)
    rows = _with_comparability(rows, judged, texts_differ=len(validation_texts(runs)) > 1)
    if by:
        rows = _best_of_groups(rows, judged, list(by_values))
    rows = _with_verdicts(rows, judged)
    rows = _sorted(rows, sort or judged)
    n_repeats = sum(len(_averaged(row.runs)) - row.n_seeds for row in rows)
    if n_repeats:
        which = "1 run repeats" if n_repeats == 1 else f"{n_repeats} runs repeat"
        notes.append(f"{which} the settings and seed of another: averaged, and counted as one seed")
    if any(row.is_noncausal for row in rows):
        notes.append(f"† {NONCAUSAL}")
    if any(not row.is_lossless for row in rows):
        notes.append(f"* {LOSSY}")
    baselines = collect_baselines([(one.run, one.metrics) for one in measured], has_losses=problem is None)
    return Comparison(tuple(chosen), rows, baselines, tuple(by_values), target, notes + faults)


def _require_metrics(names: Sequence[str], sort: str | None, target: float | None) -> None:
    problems: list[NanolmError] = [
        SettingsError(f"there is no metric {name!r}", where="--metric", hint=nearest_column(name, METRICS))
        for name in names
        if name not in METRICS
    ]
    problems += [
        SettingsError(f"{name} needs a target", where=flag, hint="give one, as in --target 1.88")
        for flag, name in [*(("--metric", name) for name in names), ("--sort", sort)]
        if name in TO_TARGET and target is None
    ]
    if target is not None and not 0 < target < math.inf:
        problems.append(
            SettingsError(f"--target {target} is not a loss", where="--target", hint="a number above 0, such as 1.88")
        )
    raise_all(problems)


def _choose_metrics(requested: Sequence[str], *, only_bits: bool, has_target: bool) -> list[str]:
    """Choose the metrics to show, the judged one first."""
    chosen = list(dict.fromkeys([*requested, *TO_TARGET] if requested else METRICS))
    if not has_target:
        chosen = [name for name in chosen if name not in TO_TARGET]
    if only_bits:
        chosen = [name for name in chosen if not METRICS[name].per_token]
        if "bits_per_byte" not in requested:
            chosen = ["bits_per_byte", *(name for name in chosen if name != "bits_per_byte")]
    return chosen


def _measure(runs: Sequence[Run], target: float | None, quantity: str) -> tuple[list[_Measured], list[str]]:
    """Compute the metrics of each run; also return what could not be read."""
    measured, faults = [], []
    for run in runs:
        metrics = compute_metrics(run)
        values: dict[str, float | None] = {name: getattr(metrics, name, None) for name in METRICS}
        fault = metrics.fault
        try:
            values |= {} if target is None else metrics_to_target(run, target, quantity)
        except NanolmError as error:
            fault = error.found
        measured.append(_Measured(run, metrics, values))
        faults += [f"{run.name}: {remark}" for remark in dict.fromkeys((*run.faults, fault, *run.notes)) if remark]
    return measured, faults


def _group_seeds(measured: Sequence[_Measured], by_run: dict[int, tuple[Any, ...]]) -> list[list[_Measured]]:
    """Group runs that differ only by their seed. A run without readable settings is a group of its own.

    Args:
        by_run: values of the settings that rows are grouped by, which may include the seed, by the id of the run.
    """
    differing = differing_settings([one.run for one in measured])
    keys = [key for key in differing if key != "seed" and affects_results(key)]
    groups: dict[str, list[_Measured]] = {}
    for one in measured:
        run = one.run
        values = [*by_run[id(run)], *(run.settings.get(key) for key in keys)]
        group = run.settings and [values, validation_text(run), run.summary.tokenizer]
        groups.setdefault(repr(group or str(run.path)), []).append(one)
    return list(groups.values())


def _row(group: Sequence[_Measured]) -> Row:
    runs = tuple(one.run for one in group)
    averaged = _averaged(runs)
    by_seed: dict[Any, list[_Measured]] = {}
    for one in (one for one in group if one.run in averaged):
        by_seed.setdefault(one.seed, []).append(one)
    counts = Counter(run.status for run in runs)
    if len(counts) == 1:
        status = runs[0].status
    else:
        status = ", ".join(f"{counts[status]} {status}" for status in sorted(counts, key=lambda s: s != "completed"))
    estimates = {name: estimate([_mean(ones, name) for ones in by_seed.values()]) for name in METRICS}
    return Row(
        settings={},
        runs=runs,
        n_seeds=len(by_seed),
        status=status,
        estimates=estimates,
        n_reached=len(estimates["tokens_to_target"].values),
        is_lossless=not any(run.summary.is_lossy for run in runs),
        is_noncausal=any(run.summary.is_noncausal for run in runs),
    )


def _averaged(runs: Sequence[Run]) -> list[Run]:
    """The runs that are averaged: the completed ones, or all if none is completed."""
    return [run for run in runs if run.status == "completed"] or list(runs)


def _mean(ones: Sequence[_Measured], name: str) -> float | None:
    values = [value for one in ones if (value := one.values[name]) is not None]
    return statistics.fmean(values) if values else None


def _best_of_groups(rows: Sequence[Row], judged: str, by: Sequence[str]) -> list[Row]:
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
    return [
        dataclasses.replace(min(group, key=lambda row: (not row.is_comparable, _rank(row, judged))), best_of=len(group))
        for group in groups.values()
    ]


def _with_settings(rows: Sequence[Row], by: Sequence[str], by_run: dict[int, tuple[Any, ...]]) -> list[Row]:
    """Add the settings that distinguish the rows, those that they are grouped by first."""
    varying = varying_settings([row.runs[0] for row in rows]) if len(rows) > 1 else {}
    varying = {key: values for key, values in varying.items() if key not in ("seed", *by)}
    return [
        dataclasses.replace(
            row,
            settings=dict(zip(by, by_run[id(row.runs[0])], strict=True)) | {key: varying[key][at] for key in varying},
        )
        for at, row in enumerate(rows)
    ]


def _with_comparability(rows: Sequence[Row], judged: str, texts_differ: bool) -> list[Row]:
    is_of_loss = METRICS[judged].is_of_loss
    flags = incomparable([row.runs[0].summary for row in rows])
    return [
        dataclasses.replace(
            row, is_comparable=bool(row.runs[0].settings) and not (is_of_loss and (is_incomparable or texts_differ))
        )
        for row, is_incomparable in zip(rows, flags, strict=True)
    ]


def _with_verdicts(rows: Sequence[Row], judged: str) -> list[Row]:
    """Compare each row with the best of the comparable ones."""
    candidates = [row for row in rows if row.is_comparable and row.estimates[judged].values]
    best = min(candidates, key=lambda row: _rank(row, judged), default=None)
    p_values = {} if best is None else _p_values(best, [row for row in candidates if row is not best], judged)
    found = []
    for row in rows:
        verdict, p_value = "", p_values.get(id(row))
        if row is best:
            verdict = "best"
        elif not row.estimates[judged].values:
            verdict = ""
        elif best is None or not row.is_comparable:
            verdict = "incomparable"
        elif p_value is None:
            verdict = "one seed" if METRICS[judged].is_of_loss else ""
        else:
            verdict = "different" if p_value < 1 - LEVEL else "not different"
        found.append(dataclasses.replace(row, is_best=row is best, verdict=verdict, p_value=p_value))
    return found


def _p_values(best: Row, others: Sequence[Row], judged: str) -> dict[int, float]:
    """Adjusted p-values of equality with the best row, by the id of each row that can be tested.

    Only losses are tested: other metrics do not vary over seeds, or change in steps of an evaluation interval.
    """
    if not METRICS[judged].is_of_loss:
        return {}
    tested = {id(row): welch_p_value(best.estimates[judged].values, row.estimates[judged].values) for row in others}
    known = {key: p_value for key, p_value in tested.items() if p_value is not None}
    return dict(zip(known, holm_adjust(list(known.values())), strict=True))


def _sorted(rows: Sequence[Row], column: str) -> list[Row]:
    if column in METRICS:
        # Runs without readable settings come last, whatever their metrics.
        return sorted(rows, key=lambda row: (not row.runs[0].settings, _rank(row, column)))
    keys = {key.rsplit(".", 1)[-1]: key for row in rows for key in row.settings}
    keys |= {key: key for row in rows for key in row.settings}
    if column not in keys:
        raise SettingsError(
            f"there is no column {column!r} to sort by", where="--sort", hint=nearest_column(column, [*METRICS, *keys])
        )
    return sorted(rows, key=lambda row: _order(row.settings[keys[column]]))


def _rank(row: Row, name: str) -> float:
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
