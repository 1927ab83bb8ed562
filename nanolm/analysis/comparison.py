"""Rows of runs that differ only by seed, compared by a metric."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nanolm.analysis.baselines import Baseline, collect_baselines
from nanolm.analysis.collection import Run
from nanolm.analysis.comparability import NONCAUSAL, batch_settings, comparability, validation_texts
from nanolm.analysis.judging import At, judge
from nanolm.analysis.metrics import IN_BITS, METRICS, TEST_METRICS, TO_TARGET, RunMetrics, measure
from nanolm.analysis.rows import (
    Row,
    add_varying_settings,
    averaged,
    best_of_groups,
    flag_incomparable,
    group_seeds,
    make_row,
    sorted_rows,
)
from nanolm.analysis.settings import differing_settings, nearest_column, values_of
from nanolm.analysis.verdicts import add_verdicts
from nanolm.errors import NanolmError, SettingsError, install_hint, raise_all
from nanolm.wording import ESTIMATE_NOTE, LOSSY


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The contents of a comparison table.

    Attributes:
        metrics: names of the metrics to show; rows are judged by the first.
        by: the keys that rows are grouped by.
        target: a loss, or bits per byte if rows are judged by these.
        point: where the judged validation loss was read: "final", or "at step 500".
        evaluations: number of evaluations that the best loss of a run is chosen from, in words; empty if unknown.
        notes: remarks for the user.
        judging: those of the notes that say by which loss rows are judged.
        by_run: the metrics of each run, with the loss that it is judged by, by its path.
    """

    metrics: tuple[str, ...]
    rows: list[Row]
    baselines: list[Baseline]
    by: tuple[str, ...]
    target: float | None
    point: str
    evaluations: str
    notes: list[str]
    judging: list[str]
    by_run: dict[Path, RunMetrics]

    def heading(self, name: str) -> str:
        """Return the heading of a metric's column, with line breaks."""
        count = f"of {self.evaluations}\n" + ("evaluation" if self.evaluations == "1" else "evaluations")
        best = f"best {count}" if self.evaluations else "best"
        point = self.point.replace("step ", "step\n")
        return METRICS[name].heading.format(point=point, best=best, target=self.target)

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
    at: At | None = None,
) -> Comparison:
    """Compare runs, with those that differ only by their seed as one row.

    With grouping, each group of rows is represented by its best row, so that each side of a comparison is tuned
    separately. Losses per token are left out if tokenizers or validation texts differ.

    Args:
        metrics: names of METRICS, rows are judged by the first; empty for all, judged by the loss on the test split if
            every run has it, else by the validation loss at the last step that all share.
        sort: a metric (best first), setting or config group (ascending); None sorts by the judged metric.
        by: settings or config groups to group rows by.
        target: validation loss to reach, in bits per byte if rows are judged by these; None for no target.
        at: the cost at which the validation loss of every run is read; None for the last step that all share.

    Raises:
        SettingsError: a metric, column or setting is unknown, or the target is of losses that are not comparable.
    """
    _require_metrics(metrics, sort, target)
    notes, problem = comparability(runs)
    if problem is not None and sort in METRICS and METRICS[sort].per_token:
        raise SettingsError(f"{sort} is a loss per token, and {problem}", where="--sort", hint="--sort bits_per_byte")
    if problem is not None and target is not None and metrics[:1] and metrics[0] not in IN_BITS:
        raise _target_error(target, problem)
    if problem is not None and target is not None and not metrics:
        raise _target_error(target, problem)
    in_bits = problem is not None or list(metrics[:1]) == ["bits_per_byte"]
    measured = [measure(run, target, "bits_per_byte" if in_bits else "loss") for run in runs]
    runs = [run for run, _ in measured]
    by_values = dict(values_of(name, runs) for name in by)
    by_run = {id(run): {key: values[n] for key, values in by_values.items()} for n, run in enumerate(runs)}
    differing = differing_settings(runs)
    judged = judge(group_seeds(measured, by_run, differing), at)
    chosen = _choose_metrics(
        metrics, only_bits=problem is not None, has_target=target is not None, has_test=judged.has_test
    )
    rows = [make_row(group, by_run[id(group[0][0])], _batches(group[0][0], differing)) for group in judged.groups]
    add_varying_settings(rows)
    flag_incomparable(rows, chosen[0], texts_differ=len(validation_texts(runs)) > 1)
    if by:
        rows = best_of_groups(rows, chosen[0], list(by_values))
    test_notes = add_verdicts(rows, chosen[0])
    rows = sorted_rows(rows, sort or chosen[0])
    judging = [*judged.notes, *_test_split_notes(rows, chosen[0], judged.has_test)]
    notes += [*judging, *test_notes]
    n_repeats = sum(len(averaged(row.runs)) - row.n_seeds for row in rows)
    if n_repeats:
        which = "1 run repeats" if n_repeats == 1 else f"{n_repeats} runs repeat"
        notes.append(f"{which} the settings and seed of another: averaged, and counted as one seed")
    if any(row.is_noncausal for row in rows):
        notes.append(f"† {NONCAUSAL}")
    if any(not row.is_lossless for row in rows):
        notes.append(f"* {LOSSY}")
    if any(row.sampled.intersection(chosen) for row in rows):
        notes.append(ESTIMATE_NOTE)
    notes += [f"{run.name}: {remark}" for run in runs for remark in (*run.faults, *run.notes)]
    baselines = collect_baselines(measured, has_losses=problem is None)
    by_path = {run.path: found for group in judged.groups for run, found in group}
    cost = (target, judged.point, judged.evaluations)
    return Comparison(tuple(chosen), rows, baselines, tuple(by_values), *cost, notes, judging, by_path)


def _target_error(target: float, problem: str) -> SettingsError:
    return SettingsError(
        f"--target {target:g} is a loss per token, and {problem}",
        where="--target",
        hint="give it in bits per byte: --metric bits_per_byte --target ...",
    )


def _batches(run: Run, differing: Iterable[str]) -> str | None:
    settings = batch_settings(run, differing)
    return None if settings is None else repr(settings)


def _test_split_notes(rows: Sequence[Row], judged: str, has_test: bool) -> list[str]:
    """Remarks on the test split: that rows are judged by it, or why not."""
    with_test = [row for row in rows if row.estimates["test_loss"].values]
    if judged in TEST_METRICS:
        return ["judged by the loss of each run's selected checkpoint on the test split, which was scored once"]
    if with_test and not has_test and len(with_test) < len(rows):
        return [f"{len(with_test)} of {len(rows)} rows have a loss on a test split: judged by the validation loss"]
    return []


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


def _choose_metrics(requested: Sequence[str], *, only_bits: bool, has_target: bool, has_test: bool) -> list[str]:
    """Choose the metrics to show, the judged one first."""
    shown = [name for name in METRICS if only_bits or name not in IN_BITS or name == "bits_per_byte"]
    chosen = list(dict.fromkeys([*requested, *TO_TARGET] if requested else shown))
    if not has_target:
        chosen = [name for name in chosen if name not in TO_TARGET]
    if only_bits:
        chosen = [name for name in chosen if not METRICS[name].per_token]
    first = "bits_per_byte" if only_bits else "val_loss"
    if has_test:
        first = "test_bits_per_byte" if only_bits else "test_loss"
    is_judged_by_other = only_bits and not set(requested) & set(IN_BITS)
    if not requested or is_judged_by_other:
        chosen = [first, *(name for name in chosen if name != first)]
    return chosen
