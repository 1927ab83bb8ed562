"""What a report says of runs, as plain values: what the page draws, and nothing that has to be looked up again."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from nanolm.analysis import metrics as figures
from nanolm.analysis.collection import Run, short_keys, told_apart
from nanolm.analysis.comparison import SEES_FUTURE, Comparison, Reference, comparability, compare
from nanolm.errors import RunError
from nanolm.report.curves import MOST_POINTS, Curve, curve
from nanolm.report.repeat import command
from nanolm.report.samples import read as read_samples
from nanolm.runs import provenance
from nanolm.runs.console import LOSSY
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import TRAIN, VAL, val_losses
from nanolm.runs.summary import Summary
from nanolm.wording import format_value

# Characters of a label that have room in a legend; of a longer one the middle is left out.
LONGEST_LABEL = 34

# Under each run: what it takes to know where its numbers came from, as summary.json has it.
PROVENANCE = ("seed", "device", "precision", "ranks", "corpus", "tokenizer", "identity")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        name: the end of its path that no other has.
        label: what it is called where it is drawn: its name, or what tells it apart; unlike every other.
        path: where it lies.
        status: how it ended, as `Run` has it.
        settings: of those that tell the runs apart, its value for each.
        figures: parameters, tokens, flops, seconds, tokens_per_second, best_val_loss, best_step, final_val_loss and
            bits_per_byte (at the best loss); None for what is not known.
        compares: whether its result can be held against the others'.
        flops_per_token: of training; None where there is no formula.
        curves: train, val, bits_per_byte, lr and grad_norm, each as `curve` returns it.
        is_thinned: whether they have fewer points than there are rows.
        samples: [step, text] in order.
        command: a line that makes it again, or None.
        config: config.yaml as it stands.
        provenance: versions, git and fingerprints.
        faults: what is damaged in it.
    """

    name: str
    label: str
    path: str
    status: str
    settings: dict[str, Any]
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


@dataclasses.dataclass(frozen=True)
class Contents:
    """A whole report, the best run first.

    Attributes:
        made: when, and by which version.
        runs: at least one.
        keys: the settings that tell the runs apart, with a short name for each.
        by_bits: whether the runs are held against each other by bits per byte: where nats a token do not compare.
        notes: what a reader must know beside the figures.
        references: the reference lines.
    """

    made: str
    runs: list[Entry]
    keys: dict[str, str]
    by_bits: bool
    notes: list[str]
    references: list[Reference]

    def result(self, entry: Entry) -> float | None:
        """What the runs are ordered by."""
        return entry.figures["bits_per_byte" if self.by_bits else "best_val_loss"]


def gather(runs: Sequence[Run]) -> Contents:
    """Reads all that is to be told of the runs.

    Raises:
        RunError: the metrics of no run can be read.
    """
    apart = told_apart(runs)
    entries = [
        _entry(run, label, {key: values[n] for key, values in apart.items()})
        for n, (run, label) in enumerate(zip(runs, labels(runs, apart), strict=True))
    ]
    unreadable = [fault for entry in entries for fault in entry.faults]
    if all(entry.faults for entry in entries):
        raise RunError(
            "nothing can be read of " + ("this run" if len(runs) == 1 else "these runs"),
            where=", ".join(entry.path for entry in entries),
            hint="; ".join(dict.fromkeys(unreadable)),
        )
    compared = compare(runs)
    found = Contents(
        made=f"nanolm {provenance.versions()['nanolm']}, {datetime.datetime.now():%Y-%m-%d %H:%M}",
        runs=entries,
        keys=short_keys(apart),
        by_bits=comparability(runs)[1] is not None,
        notes=_notes(runs, compared),
        references=compared.references,
    )
    odd = {str(run.path) for row in compared.rows if not row.compares for run in row.runs}
    entries = [dataclasses.replace(entry, compares=entry.path not in odd) for entry in entries]
    best_first = sorted(
        entries, key=lambda entry: (found.result(entry) is None, not entry.compares, found.result(entry) or 0.0)
    )
    return dataclasses.replace(found, runs=best_first)


def labels(runs: Sequence[Run], apart: dict[str, list[Any]]) -> list[str]:
    """What each run is called where it is drawn: its name, or of a job of a sweep what tells it apart.

    The folders of a sweep have names of many settings and a hash, too long for a legend.

    Args:
        apart: the settings that differ, with each run's value.

    Returns:
        As many different ones as there are runs.
    """
    # A choice is known by its own word: gpt2, but lr 0.003.
    said = {key: "" if "." not in key and key != "seed" else f"{short} " for key, short in short_keys(apart).items()}
    found = [
        ", ".join(f"{word}{_in_words(apart[key][n])}" for key, word in said.items()) if run.summary.group else ""
        for n, run in enumerate(runs)
    ]
    found = [label or run.name for label, run in zip(found, runs, strict=True)]
    return found if len(set(found)) == len(found) else [run.name for run in runs]


def _in_words(value: Any) -> str:
    return "none" if value is None else format_value(value)


def _entry(run: Run, label: str, settings: dict[str, Any]) -> Entry:
    summary, directory, faults = run.summary, RunDirectory(run.path), list(run.faults)
    try:
        measured = directory.read_metrics()
    except RunError as error:
        measured = []
        faults.append(error.found)
    train = [row for row in measured if row.split == TRAIN]
    val = [row for row in measured if row.split == VAL]
    come_to = figures.of(run)
    losses = val_losses(val)
    names = ("parameters", "tokens", "flops", "seconds", "tokens_per_second", "best_val_loss", "final_val_loss")
    known = {name: getattr(come_to, name) for name in (*names, "bits_per_byte")}
    known["best_step"] = min(losses, key=losses.__getitem__) if losses else summary.best_step
    return Entry(
        name=run.name,
        label=label,
        path=str(run.path),
        status=run.status,
        settings=settings,
        figures=known,
        compares=True,
        flops_per_token=come_to.flops / come_to.tokens if come_to.flops is not None and come_to.tokens else None,
        curves={
            "train": curve(train, "loss"),
            "val": curve(val, "loss"),
            "bits_per_byte": curve(val, "bits_per_byte"),
            "lr": curve(train, "lr"),
            "grad_norm": curve(train, "grad_norm"),
        },
        is_thinned=max(len(train), len(val)) > MOST_POINTS,
        samples=[(sample.step, sample.text) for sample in read_samples(directory.samples)],
        command=command(run.settings, run.choices),
        config=_text(directory),
        provenance=_provenance(summary),
        faults=tuple(faults),
    )


def _notes(runs: Sequence[Run], compared: Comparison) -> list[str]:
    """What a reader must know beside the figures."""
    notes, _ = comparability(runs)
    leaky = [run.name for row in compared.rows if row.sees_future for run in row.runs]
    hiding = [run.name for run in runs if run.summary.is_lossy]
    return [
        *notes,
        *([f"{', '.join(leaky)}: {SEES_FUTURE}"] if leaky else []),
        *([f"{', '.join(hiding)}: {LOSSY}"] if hiding else []),
    ]


def _provenance(summary: Summary) -> dict[str, Any]:
    git = summary.git
    uncommitted = ", with changes that were not committed" if git.get("dirty") else ""
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in summary.versions.items()) or None,
        "git commit": f"{git['commit']}{uncommitted}" if git.get("commit") else None,
        **{name: getattr(summary, name) for name in PROVENANCE},
    }


def _text(directory: RunDirectory) -> str:
    try:
        return directory.config.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return ""
