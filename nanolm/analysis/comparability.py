"""Whether the losses of runs may be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nanolm.analysis.collection import Run
from nanolm.config.fields import Trait
from nanolm.config.roles import has_trait
from nanolm.runs.summary import Summary

NONCAUSAL = "the mask attends to future tokens: not a next-token prediction loss"


def comparability(runs: Sequence[Run]) -> tuple[list[str], str | None]:
    """Check whether losses per token of these runs are comparable.

    Returns:
        Notes for the user, and the reason why the losses are not comparable; None if they are.
    """
    texts = validation_texts(runs)
    tokenizers = {run.summary.tokenizer for run in runs if run.summary.tokenizer}
    scored = {run.summary.val_scored_tokens for run in runs if run.summary.val_scored_tokens}
    if len(texts) > 1:
        problem = f"the runs are scored on {len(texts)} different validation texts"
        advice = "only bits per byte are shown: compare each run with the baselines of its own text"
        return [f"{problem}: losses are not comparable; {advice}"], problem
    if len(tokenizers) > 1:
        problem = f"the runs have {len(tokenizers)} different tokenizers"
        return [f"{problem}: losses per token are not comparable; bits per byte of the same text are"], problem
    if len(scored) > 1:
        problem = "the runs score different parts of the validation text (trainer.sampling)"
        return [f"{problem}: losses per token are only roughly comparable, so bits per byte are shown"], problem
    return [], None


def validation_texts(runs: Sequence[Run]) -> set[str]:
    """The different validation texts of the runs, as `Run.validation_text` identifies them."""
    return {text for run in runs if (text := run.validation_text) is not None}


def incomparable(summaries: Sequence[Summary]) -> list[bool]:
    """Flag runs whose loss is not comparable with the others'.

    That is a run whose mask sees the future while others' masks do not, and a run with a lossy tokenizer while
    tokenizers differ. Runs that never started are ignored.
    """
    started = [summary for summary in summaries if summary.tokenizer]
    all_noncausal = all(summary.is_noncausal for summary in started)
    n_tokenizers = len({summary.tokenizer for summary in started})
    return [
        bool(summary.is_noncausal and not all_noncausal) or (summary.is_lossy and n_tokenizers > 1)
        for summary in summaries
    ]


def batch_settings(run: Run, differing: Iterable[str]) -> dict[str, object] | None:
    """Return the settings and fingerprints that decide which batch a run sees at a step with a seed.

    Args:
        differing: the settings in which the compared runs differ; others decide nothing.

    Returns:
        None if the files of the run do not say, and for a model that is fitted in one pass.
    """
    if not (run.settings and run.validation_text and run.summary.tokenizer) or run.summary.is_fitted:
        return None
    keys = [key for key in differing if has_trait(key, Trait.batches)]
    if any(run.settings.get(f"trainer.{name}_schedule") for name in ("batch_size", "context_length")):
        # The stages of a schedule are fractions of the steps.
        keys.append("trainer.max_steps")
    found: dict[str, object] = {key: run.settings.get(key) for key in keys}
    return found | {"dataset": run.validation_text, "tokenizer": run.summary.tokenizer}
