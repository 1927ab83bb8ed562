"""The first lines that a run says."""

from __future__ import annotations

from typing import Any

from nanolm.config import ConstantConfig, ScheduleFreeConfig, reads_documents
from nanolm.model import attention_paths, masks
from nanolm.model.build import Counted
from nanolm.runs.console import LOSSY
from nanolm.training import optimizers
from nanolm.training.setup import Session


def announce(session: Session, summary: dict[str, Any], passed_over: list[str], changes: list[str]) -> None:
    """The first lines that people read."""
    config, say = session.config, session.log.say
    for problem in passed_over:
        say(f"passed over a damaged checkpoint: {problem}")
    for note in session.corpus.notes:
        say(note)
    chosen = summary["choices"]
    parts = [chosen.get(group, getattr(getattr(config, group), "name", "")) for group in ("model", "size", "dataset")]
    amount = "a table to count" if isinstance(session.state.model, Counted) else f"{summary['parameters']:,} parameters"
    say(
        f"{' '.join(part for part in parts if part)}: {amount}, "
        f"{summary['train_tokens']:,} + {summary['val_tokens']:,} tokens of {summary['vocab_size']:,} kinds, "
        f"on {summary['device']} in {summary['precision']}"
        + (f", {session.ranks.n} ranks by {config.trainer.parallel.name}" if session.ranks.n > 1 else "")
    )
    attention = attention_paths.in_words(config)
    if attention is not None:
        say(attention)
    if not summary["lossless"]:
        say(f"{LOSSY}: bits per byte are counted on the text as it was")
    if session.state.optimizer is not None and (
        groups := optimizers.in_words(config.optimizer, session.state.optimizer)
    ):
        say(groups)
    if isinstance(config.optimizer, ScheduleFreeConfig) and not isinstance(config.scheduler, ConstantConfig):
        say(f"schedule_free is made for scheduler=constant; here it has {config.scheduler.name}")
    for leak in masks.leaks(config):
        say(leak)
    if reads_documents(config) and session.streams["train"].n_documents == 1:
        say("the train split is one document: mask.within_documents hides nothing of it")
    if session.parent is not None:
        stood = f"begins where {session.parent.run.path} stands at step {session.state.step}"
        say(stood + (f", with {'; '.join(changes)}" if changes else ""))
    elif session.state.step:
        say(f"goes on from step {session.state.step}" + (f" with {'; '.join(changes)}" if changes else ""))
    say(f"run directory {session.run.path}")
