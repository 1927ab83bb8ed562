"""What a report says of runs, as plain values: what the page draws, and nothing that has to be looked up again."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import Any

from nanolm.config_file import load_yaml
from nanolm.errors import NanolmError, RunError
from nanolm.model import count
from nanolm.report.curves import MOST_POINTS, Curve, curve
from nanolm.report.repeat import command
from nanolm.report.samples import read as read_samples
from nanolm.runs import provenance
from nanolm.runs.collection import Run, rows, short_keys, told_apart
from nanolm.runs.directory import RunDirectory

# Under each run: what it takes to know where its numbers came from, as summary.json has it.
PROVENANCE = ("seed", "device", "precision", "ranks", "corpus", "tokenizer", "identity")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A line to hold losses against.

    Attributes:
        name: as people read it, with the tokenizer where the runs have several.
        loss: nats a token; None where the runs' tokens are not the same.
        bits_per_byte: None where it cannot be told.
    """

    name: str
    loss: float | None
    bits_per_byte: float | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run.

    Attributes:
        name: short, and unlike every other.
        path: where it lies.
        status: how it ended, as `Run` has it.
        settings: of those that tell the runs apart, its value for each.
        figures: parameters, tokens, flops, seconds, tokens_per_second, best_val_loss, best_step, final_val_loss and
            bits_per_byte (at the best loss); None for what is not known.
        flops_per_token: of training; None where there is no formula.
        lossless: whether its tokenizer hides no text.
        curves: train, val, bits_per_byte, lr and grad_norm, each as `curve` returns it.
        is_thinned: whether they have fewer points than there are rows.
        samples: [step, text] in order.
        command: a line that makes it again, or None.
        config: config.yaml as it stands.
        provenance: versions, git and fingerprints.
        faults: what is damaged in it.
    """

    name: str
    path: str
    status: str
    settings: dict[str, Any]
    figures: dict[str, float | None]
    flops_per_token: float | None
    lossless: bool
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
        loss_compares: whether nats a token of one run can be held against another's.
        bits_compare: the same of bits per byte.
        why: in words, where one of them is False.
        references: the reference lines.
    """

    made: str
    runs: list[Entry]
    keys: dict[str, str]
    loss_compares: bool
    bits_compare: bool
    why: str
    references: list[Reference]

    @property
    def by_bits(self) -> bool:
        """Whether the runs are held against each other by bits per byte: where nats a token do not compare."""
        return self.bits_compare and not self.loss_compares

    def result(self, entry: Entry) -> float | None:
        """What the runs are ordered by."""
        return entry.figures["bits_per_byte" if self.by_bits else "best_val_loss"]


def gather(runs: Sequence[Run]) -> Contents:
    """Reads all that is to be told of the runs.

    Raises:
        RunError: the metrics of no run can be read.
    """
    apart = told_apart(runs)
    entries = [_entry(run, {key: values[n] for key, values in apart.items()}) for n, run in enumerate(runs)]
    unreadable = [fault for entry in entries for fault in entry.faults]
    if all(entry.faults for entry in entries):
        raise RunError(
            "nothing can be read of " + ("this run" if len(runs) == 1 else "these runs"),
            where=", ".join(entry.path for entry in entries),
            mend="; ".join(dict.fromkeys(unreadable)),
        )
    loss_compares, bits_compare, why = _comparable(runs)
    found = Contents(
        made=f"nanolm {provenance.versions()['nanolm']}, {datetime.datetime.now():%Y-%m-%d %H:%M}",
        runs=entries,
        keys=short_keys(apart),
        loss_compares=loss_compares,
        bits_compare=bits_compare,
        why=why,
        references=_references(runs, loss_compares),
    )
    best_first = sorted(entries, key=lambda entry: (found.result(entry) is None, found.result(entry) or 0.0))
    return dataclasses.replace(found, runs=best_first)


def _entry(run: Run, settings: dict[str, Any]) -> Entry:
    summary, directory, faults = run.summary, RunDirectory(run.path), list(run.faults)
    try:
        measured = rows(run)
    except RunError as error:
        measured = []
        faults.append(error.found)
    train = [row for row in measured if row.get("split") == "train"]
    val = [row for row in measured if row.get("split") == "val"]
    per_token = _flops_per_token(summary, directory)
    tokens = _number(summary.get("tokens"))
    best = min((row for row in val if _number(row.get("loss")) is not None), key=lambda row: row["loss"], default=None)
    names = ("parameters", "tokens", "seconds", "tokens_per_second", "best_val_loss", "best_step", "final_val_loss")
    figures = {name: _number(summary.get(name)) for name in names}
    # A run that was cut off has rows that its summary does not know of yet.
    if best is not None and (figures["best_val_loss"] is None or best["loss"] < figures["best_val_loss"]):
        figures.update(best_val_loss=_number(best["loss"]), best_step=_number(best.get("step")))
    figures["flops"] = None if per_token is None or tokens is None else per_token * tokens
    figures["bits_per_byte"] = _number(best.get("bits_per_byte")) if best else _number(summary.get("bits_per_byte"))
    return Entry(
        name=run.name,
        path=str(run.path),
        status=run.status,
        settings=settings,
        figures=figures,
        flops_per_token=per_token,
        lossless=bool(summary.get("lossless", True)),
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


def _flops_per_token(summary: dict[str, Any], directory: RunDirectory) -> float | None:
    """Of training; by formula where the summary does not say, and None where there is none."""
    if "flops_per_token" in summary:
        return _number(summary["flops_per_token"])
    try:
        config = load_yaml(directory.config)
    except NanolmError:
        # Damaged, or of a plugin that is not imported.
        return None
    if not count.has_formula(config) or "vocab_size" not in summary:
        return None
    return count.training_flops(count.total(count.flops_per_token(config, summary["vocab_size"])))


def _comparable(runs: Sequence[Run]) -> tuple[bool, bool, str]:
    """Whether losses compare, whether bits per byte do, and why not."""
    summaries = [run.summary for run in runs if run.summary]
    texts = {(summary.get("corpus"), *_split(run)) for run, summary in ((r, r.summary) for r in runs if r.summary)}
    tokenizers = {summary.get("tokenizer") for summary in summaries}
    if not all(summary.get("lossless", True) for summary in summaries) and len(tokenizers) > 1:
        return (
            False,
            False,
            (
                "The runs have several tokenizers, and one of them hides text behind <unk>: "
                "neither nats per token nor bits per byte of one run can be held against another's."
            ),
        )
    if len(texts) > 1:
        return (
            False,
            True,
            (
                "The runs were validated on different texts: their losses do not compare. Bits per byte are shown, "
                "and say how hard each text is as well."
            ),
        )
    if len(tokenizers) > 1:
        return False, True, "The runs have several tokenizers: nats per token do not compare, and bits per byte do."
    return True, True, ""


def _split(run: Run) -> tuple[Any, ...]:
    """What decides which part of a corpus is for validation."""
    keys = ("val_fraction", "test_fraction", "split_by", "split_seed", "val_split")
    return tuple(str(run.settings.get(f"dataset.{key}")) for key in keys)


def _references(runs: Sequence[Run], loss_compares: bool) -> list[Reference]:
    found: dict[tuple[str, int], Reference] = {}
    tokenizers = {run.summary.get("tokenizer") for run in runs if run.summary}
    for run in runs:
        factor = _bits_per_nat(run.summary)
        tokenizer = f" ({run.settings.get('tokenizer.name')})" if len(tokenizers) > 1 else ""
        lines = [
            Reference(
                name.replace("_", " ") + tokenizer, loss if loss_compares else None, loss * factor if factor else None
            )
            for name, loss in (run.summary.get("reference_losses") or {}).items()
            if _number(loss) is not None
        ] + [
            Reference(name.replace("_", " "), bits / factor if factor and loss_compares else None, bits)
            for name, bits in (run.summary.get("reference_bits_per_byte") or {}).items()
            if _number(bits) is not None
        ]
        for line in lines:
            # The same line of two runs differs by rounding at most.
            found.setdefault((line.name, round(1e4 * (line.bits_per_byte or line.loss or 0))), line)
    return list(found.values())


def _bits_per_nat(summary: dict[str, Any]) -> float | None:
    """Bits per byte for a nat a token, on the run's own validation text."""
    bits, loss = _number(summary.get("bits_per_byte")), _number(summary.get("best_val_loss"))
    return bits / loss if bits and loss else None


def _provenance(summary: dict[str, Any]) -> dict[str, Any]:
    versions = summary.get("versions") or {}
    git = summary.get("git") or {}
    commit = git.get("commit")
    return {
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
        "git commit": f"{commit}{', with changes that were not committed' if git.get('dirty') else ''}"
        if commit
        else None,
        **{name: summary.get(name) for name in PROVENANCE},
    }


def _text(directory: RunDirectory) -> str:
    try:
        return directory.config.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _number(value: object) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None  # type: ignore[return-value]
