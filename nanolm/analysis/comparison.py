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
from nanolm.analysis.comparability import NONCAUSAL, comparability, incomparable, validation_texts
from nanolm.analysis.metrics import METRICS, TO_TARGET, RunMetrics, measure
from nanolm.analysis.settings import differing_settings, nearest_column, values_of, varying_settings
from nanolm.analysis.statistics import LEVEL, Estimate, estimate, holm_adjust, welch_p_value
from nanolm.config.roles import affects_results
from nanolm.errors import NanolmError, SettingsError, install_hint, raise_all
from nanolm.wording import LOSSY

Measured = tuple[Run, RunMetrics]


@dataclasses.dataclass
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
        p_value: of equality with the best row, by Welch's t-test with Holm's correction for the number of rows that are
            tested against it; None if the test is impossible.
        verdict: `best` (of the comparable rows), `different`, `not different`, `one seed`, `incomparable`, or empty if
            the metric is unknown.
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
    p_value: float | None = None
    verdict: str = ""

    @property
    def is_best(self) -> bool:
        """Whether it is the best of the comparable rows."""
        return self.verdict == "best"


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

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame: one row per row of the table, with settings and metrics as columns.

        Raises:
            SettingsError: pandas is not installed.
        """
        from nanolm.analysis.comparison_formats import as_records

        try:
            import pandas
        except ImportError as error:
            raise SettingsError("pandas is not installed", where="to_pandas", hint=install_hint("notebook")) from error
        return pandas.DataFrame(as_records(self))

    def to_markdown(self) -> str:
        """Return the table of `nanolm compare --markdown`."""
        from nanolm.analysis.comparison_formats import as_markdown

        return as_markdown(self)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        from nanolm.analysis.comparison_formats import as_html

        return as_html(self)


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
    quantity = "bits_per_byte" if judged == "bits_per_byte" else "loss"
    measured = [measure(run, target, quantity) for run in runs]
    runs = [run for run, _ in measured]
    by_values = dict(values_of(name, runs) for name in by)
    by_run = {id(run): {key: values[at] for key, values in by_values.items()} for at, run in enumerate(runs)}
    rows = [_row(group, by_run[id(group[0][0])]) for group in _group_seeds(measured, by_run)]
    _add_varying_settings(rows)
    _flag_incomparable(rows, judged, texts_differ=len(validation_texts(runs)) > 1)
    if by:
        rows = _best_of_groups(rows, judged, list(by_values))
    _add_verdicts(rows, judged)
    rows = _sorted(rows, sort or judged)
    n_repeats = sum(len(_averaged(row.runs)) - row.n_seeds for row in rows)
    if n_repeats:
        which = "1 run repeats" if n_repeats == 1 else f"{n_repeats} runs repeat"
        notes.append(f"{which} the settings and seed of another: averaged, and counted as one seed")
    if any(row.is_noncausal for row in rows):
        notes.append(f"† {NONCAUSAL}")
    if any(not row.is_lossless for row in rows):
        notes.append(f"* {LOSSY}")
    notes += [f"{run.name}: {remark}" for run in runs for remark in (*run.faults, *run.notes)]
    baselines = collect_baselines(measured, has_losses=problem is None)
    return Comparison(tuple(chosen), rows, baselines, tuple(by_values), target, notes)


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


def _group_seeds(measured: Sequence[Measured], by_run: dict[int, dict[str, Any]]) -> list[list[Measured]]:
    """Group runs that differ only by their seed. A run without readable settings is a group of its own.

    Args:
        by_run: the settings that rows are grouped by, which may include the seed, by the id of the run.
    """
    differing = differing_settings([run for run, _ in measured])
    keys = [key for key in differing if key != "seed" and affects_results(key)]
    groups: dict[str, list[Measured]] = {}
    for run, metrics in measured:
        values = [*by_run[id(run)].values(), *(run.settings.get(key) for key in keys)]
        group = run.settings and [values, run.validation_text, run.summary.tokenizer]
        groups.setdefault(repr(group or str(run.path)), []).append((run, metrics))
    return list(groups.values())


def _row(group: Sequence[Measured], settings: dict[str, Any]) -> Row:
    runs = tuple(run for run, _ in group)
    averaged = _averaged(runs)
    by_seed: dict[Any, list[RunMetrics]] = {}
    for run, metrics in group:
        if run in averaged:
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
        estimates=estimates,
        n_reached=len(estimates["tokens_to_target"].values),
        is_lossless=not any(run.summary.is_lossy for run in runs),
        is_noncausal=any(run.summary.is_noncausal for run in runs),
    )


def _averaged(runs: Sequence[Run]) -> list[Run]:
    """The runs that are averaged: the completed ones, or all if none is completed."""
    return [run for run in runs if run.status == "completed"] or list(runs)


def _mean(measured: Sequence[RunMetrics], name: str) -> float | None:
    values = [value for metrics in measured if (value := getattr(metrics, name)) is not None]
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
    chosen = []
    for group in groups.values():
        best = min(group, key=lambda row: (not row.is_comparable, _rank(row, judged)))
        best.best_of = len(group)
        chosen.append(best)
    return chosen


def _add_varying_settings(rows: Sequence[Row]) -> None:
    """Add the settings that distinguish the rows to those that they are grouped by."""
    varying = varying_settings([row.runs[0] for row in rows]) if len(rows) > 1 else {}
    for at, row in enumerate(rows):
        row.settings |= {key: values[at] for key, values in varying.items() if key not in ("seed", *row.settings)}


def _flag_incomparable(rows: Sequence[Row], judged: str, texts_differ: bool) -> None:
    is_of_loss = METRICS[judged].is_of_loss
    flags = incomparable([row.runs[0].summary for row in rows])
    for row, is_incomparable in zip(rows, flags, strict=True):
        row.is_comparable = bool(row.runs[0].settings) and not (is_of_loss and (is_incomparable or texts_differ))


def _add_verdicts(rows: Sequence[Row], judged: str) -> None:
    """Compare each row with the best of the comparable ones.

    Only losses are tested: other metrics do not vary over seeds, or change in steps of an evaluation interval.
    """
    is_of_loss = METRICS[judged].is_of_loss
    candidates = [row for row in rows if row.is_comparable and row.estimates[judged].values]
    best = min(candidates, key=lambda row: _rank(row, judged), default=None)
    if best is not None and is_of_loss:
        _test_against(best, [row for row in candidates if row is not best], judged)
    for row in rows:
        if row is best:
            row.verdict = "best"
        elif not row.estimates[judged].values:
            row.verdict = ""
        elif not row.is_comparable:
            row.verdict = "incomparable"
        elif row.p_value is None:
            row.verdict = "one seed" if is_of_loss else ""
        else:
            row.verdict = "different" if row.p_value < 1 - LEVEL else "not different"


def _test_against(best: Row, others: Sequence[Row], judged: str) -> None:
    """Set the p-value of equality with the best row, for rows with several seeds."""
    p_values = [welch_p_value(best.estimates[judged].values, row.estimates[judged].values) for row in others]
    tested = [(row, p_value) for row, p_value in zip(others, p_values, strict=True) if p_value is not None]
    adjusted = holm_adjust([p_value for _, p_value in tested])
    for (row, _), p_value in zip(tested, adjusted, strict=True):
        row.p_value = p_value


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
