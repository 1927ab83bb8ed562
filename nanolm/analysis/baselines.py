"""The baselines that runs are compared with: counted n-grams and compressors."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nanolm.analysis.collection import Run
from nanolm.analysis.comparability import validation_texts
from nanolm.analysis.metrics import RunMetrics
from nanolm.analysis.settings import chosen_option


@dataclasses.dataclass(frozen=True)
class Baseline:
    """The loss of a counted n-gram model or a compressor on a validation text.

    Attributes:
        name: unique; it contains the text or the tokenizer where there are several.
        loss: nats per token; None where the runs' losses per token are not comparable.
        bits_per_byte: of the same text.
    """

    name: str
    loss: float | None
    bits_per_byte: float | None


def collect_baselines(measured: Sequence[tuple[Run, RunMetrics]], has_losses: bool) -> list[Baseline]:
    """Collect the baselines of each validation text, for n-grams of each tokenizer too, the weakest first."""
    # Without settings the validation text of a run is unknown.
    measured = [(run, metrics) for run, metrics in measured if run.settings]
    runs = [run for run, _ in measured]
    by_text = {run.validation_text: run for run in reversed(runs)}
    n_tokenizers = len({run.summary.tokenizer for run in runs if run.summary.tokenizer})
    texts = _labels("dataset", "corpus", by_text) if len(validation_texts(runs)) > 1 else {}
    tokenizers = {
        text: _labels(
            "tokenizer", "tokenizer", {run.summary.tokenizer: run for run in runs if run.validation_text == text}
        )
        for text in (by_text if n_tokenizers > 1 else ())
    }
    found: dict[tuple[Any, ...], Baseline] = {}
    for run, metrics in measured:
        text, tokenizer = run.validation_text, run.summary.tokenizer
        of_text = [texts[text]] if texts else []
        of_tokens = [*of_text, tokenizers[text][tokenizer]] if tokenizers else of_text
        ratio = metrics.bits_per_nat
        for name, nats in run.summary.baseline_losses.items():
            mark = "*" if run.summary.is_lossy else ""
            baseline = Baseline(_full_name(name, of_tokens) + mark, nats, None if ratio is None else nats * ratio)
            _keep_complete(found, (text, tokenizer, name), baseline)
        for name, its_bits in run.summary.baseline_bits_per_byte.items():
            # A very short text compresses to a meaningless size.
            if its_bits > 0:
                baseline = Baseline(_full_name(name, of_text), None if ratio is None else its_bits / ratio, its_bits)
                _keep_complete(found, (text, name), baseline)
    baselines = list(found.values())
    if not has_losses:
        baselines = [dataclasses.replace(baseline, loss=None) for baseline in baselines]
    return sorted(baselines, key=lambda baseline: -(baseline.bits_per_byte or math.inf))


def _labels(group: str, fingerprint: str, runs: Mapping[str | None, Run]) -> dict[str | None, str]:
    """Return a unique name for each text or tokenizer.

    The name is the chosen option, followed by the settings of the group that differ between runs with the same option,
    or by the start of the fingerprint if no setting differs (the file at a path has changed).

    Args:
        group: dataset or tokenizer.
        fingerprint: the field of the summary with the SHA-256 of the text or tokenizer.
        runs: a run for each text or tokenizer.
    """
    options = {key: str(chosen_option(run, group)) for key, run in runs.items()}
    labels = {}
    for key, run in runs.items():
        others = [other.settings for at, other in runs.items() if options[at] == options[key]]
        names = [name for name in run.settings if name.startswith(f"{group}.")]
        differing = [name for name in names if any(other.get(name) != run.settings[name] for other in others)]
        settings = [f"{name.removeprefix(f'{group}.')}={run.settings[name]}" for name in differing]
        labels[key] = " ".join([options[key], *settings])
    n_uses = Counter(labels.values())
    return {
        key: label if n_uses[label] == 1 else f"{label} {str(getattr(runs[key].summary, fingerprint))[:8]}"
        for key, label in labels.items()
    }


def _full_name(name: str, of: Sequence[str]) -> str:
    return name.replace("_", " ") + (f" ({', '.join(of)})" if of else "")


def _keep_complete(found: dict[tuple[Any, ...], Baseline], key: tuple[Any, ...], baseline: Baseline) -> None:
    known = found.get(key)
    if known is None or known.loss is None or known.bits_per_byte is None:
        found[key] = baseline
