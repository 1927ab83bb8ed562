"""The contents of a report as plain values, from run directories."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import Any

from nanolm.analysis.baselines import Baseline
from nanolm.analysis.collection import DAMAGED, Run
from nanolm.analysis.comparability import NONCAUSAL, comparability
from nanolm.analysis.comparison import compare
from nanolm.analysis.comparison_formats import as_difference
from nanolm.analysis.comparison_table import describe_tests, one_line
from nanolm.analysis.metrics import TEST_METRICS, RunMetrics
from nanolm.analysis.names import short_keys
from nanolm.analysis.rows import Row, averaged
from nanolm.analysis.settings import varying_settings
from nanolm.errors import RunError
from nanolm.report.curves import MAX_POINTS, Curve, curves
from nanolm.report.reproduce import command, fork_command, import_command
from nanolm.runs import provenance
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import TRAIN, VAL, val_losses
from nanolm.runs.samples import read_samples
from nanolm.runs.summary import Summary
from nanolm.sweeps.status import read_status, sweep_folders
from nanolm.untrusted import read_inside
from nanolm.wording import LOSSY, format_value

# Longer labels are shortened in legends.
MAX_LABEL_LENGTH = 34

FIGURES = (
    *("parameters", "trained_parameters", "tokens", "flops", "seconds", "tokens_per_second"),
    *("val_loss", "bits_per_byte", "best_val_loss", "final_val_loss", "test_loss", "test_bits_per_byte"),
)

# Keys of summary.json shown with each run.
PROVENANCE = ("seed", "device", "precision", "ranks", "corpus", "tokenizer", "identity")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run.

    Attributes:
        name: the shortest unique end of its path.
        label: its unique label in plots: its name, or the settings in which it differs.
        path: the run directory.
        status: as `Run` has it.
        settings: its values of the settings in which the runs differ.
        estimated: the figures that are estimates over a part of the validation split (trainer.val_tokens).
        figures: the FIGURES and best_step; None if unknown. val_loss and bits_per_byte are those of the judged loss.
        compares: whether its result is comparable with the others.
        flops_per_token: training FLOPs; None if there is no formula.
        curves: train, val, bits_per_byte, lr and grad_norm, each as `curve` returns it.
        is_thinned: whether the curves have fewer points than there are rows.
        samples: [step, text] sorted by step.
        command: the command that reproduces the run, or None.
        config: content of config.yaml.
        provenance: versions, git and fingerprints.
        faults: descriptions of damaged files.
        row: index of its row of seeds in Contents.rows; None for a run that is in none.
    """

    name: str
    label: str
    path: str
    status: str
    settings: dict[str, Any]
    estimated: list[str]
    figures: dict[str, float | None]
    compares: bool
    flops_per_token: float | None
    curves: dict[str, Curve]
    is_thinned: bool
    samples: list[tuple[int, str]]
    command: str | None
    config: str
    provenance: dict[str, Any]
    faults: tuple[str, ...]
    row: int | None = None


@dataclasses.dataclass(frozen=True)
class SeedRow:
    """Runs that differ only by their seed, as `nanolm compare` shows them.

    Attributes:
        label: the settings that distinguish it.
        runs: names of its averaged runs.
        mean, interval: of the judged metric.
        verdict, p_value, seeds_needed: as in the comparison.
        difference: to the best row, as plain values; None if it is not tested.
    """

    label: str
    runs: tuple[str, ...]
    mean: float | None
    interval: float | None
    verdict: str
    p_value: float | None
    seeds_needed: int | None
    difference: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a report.

    Attributes:
        made: version and date.
        runs: at least one, best first.
        keys: the settings in which the runs differ, with their short names.
        by_bits: whether runs are compared by bits per byte, because their nats per token are not comparable.
        notes: remarks on comparability.
        baselines: the reference losses.
        rows: rows of seeds, best first.
        judged: the metric that runs and rows are judged by, in words.
        judged_metric: its name in the figures.
        is_tested: whether it is a loss on the test split.
        tests: remarks on the tests of the rows.
        sweeps: the status of each sweep that the runs are jobs of, as `SweepStatus.as_dict` and in words.
    """

    made: str
    runs: list[Entry]
    keys: dict[str, str]
    by_bits: bool
    notes: list[str]
    baselines: list[Baseline]
    rows: list[SeedRow]
    judged: str
    judged_metric: str
    is_tested: bool
    tests: list[str]
    sweeps: list[dict[str, Any]]

    def result(self, entry: Entry) -> float | None:
        """Return the metric that runs are judged by; None for a run that did not finish, among others that did."""
        return entry.figures[self.judged_metric]


def gather(runs: Sequence[Run]) -> Contents:
    """Read the contents from runs.

    Raises:
        RunError: none of the runs can be read.
    """
    varying = varying_settings(runs)
    compared = compare(runs)
    incomparable = {run.path for row in compared.rows if not row.is_comparable for run in row.runs}
    judged = compared.metrics[0]
    rows = {run.path: at for at, row in enumerate(compared.rows) for run in averaged(row.runs)}
    entries = [
        _entry(
            run,
            label,
            {key: values[n] for key, values in varying.items()},
            run.path not in incomparable,
            rows.get(run.path),
            compared.by_run[run.path],
        )
        for n, (run, label) in enumerate(zip(runs, labels(runs, varying), strict=True))
    ]
    if all(entry.status == DAMAGED for entry in entries):
        raise RunError(
            "this run cannot be read" if len(runs) == 1 else "none of these runs can be read",
            where=", ".join(entry.path for entry in entries),
            hint="; ".join(dict.fromkeys(fault for entry in entries for fault in entry.faults)),
        )
    notes, problem = comparability(runs)
    if noncausal := [run.name for row in compared.rows if row.is_noncausal for run in row.runs]:
        notes.append(f"{', '.join(noncausal)}: {NONCAUSAL}")
    if lossy := [run.name for run in runs if run.summary.is_lossy]:
        notes.append(f"{', '.join(lossy)}: {LOSSY}")
    notes += compared.judging
    now = datetime.datetime.now()
    sweeps = [read_status(str(folder)) for folder in sweep_folders(run.path for run in runs)]
    found = Contents(
        made=f"nanolm {provenance.versions()['nanolm']}, {now:%Y-%m-%d %H:%M}",
        runs=entries,
        keys=short_keys(varying),
        by_bits=problem is not None,
        notes=notes,
        baselines=compared.baselines,
        rows=[_seed_row(row, judged) for row in compared.rows],
        judged=one_line(compared.heading(judged)),
        judged_metric=judged,
        is_tested=judged in TEST_METRICS,
        tests=[describe_tests(compared)] if any(row.difference is not None for row in compared.rows) else [],
        sweeps=[{**sweep.as_dict(), "progress": sweep.describe(now)} for sweep in sweeps],
    )
    entries.sort(key=lambda entry: _rank(entry, found))
    return found


def _rank(entry: Entry, found: Contents) -> tuple[bool, bool, float]:
    """A sort key: the best run first, and runs that are not judged last, by their best validation loss."""
    result, best = found.result(entry), entry.figures["best_val_loss"]
    return result is None, not entry.compares, (math.inf if best is None else best) if result is None else result


def labels(runs: Sequence[Run], varying: dict[str, list[Any]]) -> list[str]:
    """Return a unique label for each run: its name, or for jobs of a sweep the settings in which they differ.

    The folder names of sweep jobs, with many settings and a hash, are too long for a legend.

    Args:
        varying: the settings in which they differ, with each run's value.
    """
    # The option of a group needs no key: gpt2, but lr 0.003.
    short = short_keys(varying)
    prefixes = {key: f"{short[key]} " if "." in key or key == "seed" else "" for key in varying}
    found = []
    for n, run in enumerate(runs):
        label = ", ".join(f"{prefix}{format_or_none(varying[key][n])}" for key, prefix in prefixes.items())
        found.append(label if label and run.summary.group else run.name)
    return found if len(set(found)) == len(found) else [run.name for run in runs]


def format_or_none(value: Any) -> str:
    """Format the value of a setting; None is "none"."""
    return "none" if value is None else format_value(value)


def _seed_row(row: Row, judged: str) -> SeedRow:
    difference = None if row.difference is None else as_difference(row.difference)
    found = row.estimates[judged]
    names = tuple(run.name for run in averaged(row.runs))
    figures = (found.mean, found.interval, row.verdict, row.p_value, row.seeds_needed)
    return SeedRow(row.describe(), names, *figures, difference)


def _entry(run: Run, label: str, settings: dict[str, Any], compares: bool, row: int | None, found: RunMetrics) -> Entry:
    summary, directory = run.summary, RunDirectory(run.path)
    measured, samples, config = [], [], b""
    try:
        measured = [] if run.faults else directory.read_thinned_metrics()
    except RunError as error:
        run = run.with_fault(error.found)
    with contextlib.suppress(OSError):
        config = read_inside(directory.config, directory.path)
    faults = list(run.faults)
    try:
        samples = read_samples(directory.samples)
    except RunError as error:
        faults.append(error.found)
    train = [row for row in measured if row.split == TRAIN]
    val = [row for row in measured if row.split == VAL]
    losses = val_losses(val)
    loss, lr, grad_norm = curves(train, ("loss", "lr", "grad_norm"))
    val_loss, bits_per_byte = curves(val, ("loss", "bits_per_byte"))
    figures = {name: getattr(found, name) for name in FIGURES}
    is_exact = summary.best_val_sample is None
    figures["best_step"] = min(losses, key=losses.__getitem__) if losses and is_exact else summary.best_step
    return Entry(
        name=run.name,
        label=label,
        path=str(run.path),
        status=run.status,
        settings=settings,
        estimated=sorted(found.sampled.intersection(FIGURES)),
        figures=figures,
        compares=compares,
        flops_per_token=found.flops / found.tokens if found.flops is not None and found.tokens else None,
        curves={
            "train": loss,
            "val": val_loss,
            "bits_per_byte": bits_per_byte,
            "lr": lr,
            "grad_norm": grad_norm,
        },
        is_thinned=max(len(train), len(val)) > MAX_POINTS,
        samples=[(sample.step, sample.text) for sample in samples],
        command=_command(run),
        config=config.decode("utf-8", errors="replace"),
        provenance=_provenance(summary),
        faults=tuple(faults),
        row=row,
    )


def _command(run: Run) -> str | None:
    """Return the command that makes the run again."""
    if run.summary.imported:
        return import_command(run.path, run.summary.imported)
    if run.summary.parent:
        return fork_command(run.settings, run.summary.parent)
    return command(run.settings, run.summary.choices)


def _provenance(summary: Summary) -> dict[str, Any]:
    git = summary.git
    uncommitted = " with uncommitted changes" if git.get("dirty") else ""
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()) or None,
        "git commit": f"{git['commit']}{uncommitted}" if git.get("commit") else None,
        **{name: getattr(summary, name) for name in PROVENANCE},
    }
