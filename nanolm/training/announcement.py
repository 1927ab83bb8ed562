"""The first lines that a run says."""

from __future__ import annotations

from nanolm.config.mask import reads_documents
from nanolm.config.optimizer import ScheduleFreeConfig
from nanolm.config.scheduler import ConstantConfig
from nanolm.model import backend_choice, masks
from nanolm.runs.console import LOSSY
from nanolm.runs.summary import Summary
from nanolm.training import schedules
from nanolm.training.optimizers import build as optimizers
from nanolm.training.setup import Session


def announce(session: Session, summary: Summary, passed_over: list[str], changes: list[str]) -> None:
    """The first lines that people read."""
    config, say = session.config, session.log.say
    for problem in passed_over:
        say(f"passed over a damaged checkpoint: {problem}")
    for note in session.corpus.notes:
        say(note)
    chosen = summary.choices
    parts = [chosen.get(group, getattr(getattr(config, group), "name", "")) for group in ("model", "size", "dataset")]
    is_parallel = session.ranks.world_size > 1
    amount = "a table to count" if summary.is_fitted else f"{summary.parameters:,} parameters"
    say(
        f"{' '.join(part for part in parts if part)}: {amount}, "
        f"{summary.train_tokens:,} + {summary.val_tokens:,} tokens of {summary.vocab_size:,} kinds, "
        f"on {summary.device} in {summary.precision}"
        + (f", {session.ranks.world_size} ranks by {config.trainer.parallel.name}" if is_parallel else "")
    )
    attention = backend_choice.describe_backends(config, session.state.device.type)
    if attention is not None:
        say(attention)
    if summary.is_lossy:
        say(f"{LOSSY}: bits per byte are counted on the text as it was")
    if session.state.optimizer is not None and (
        groups := optimizers.describe_groups(config.optimizer, session.state.optimizer)
    ):
        say(groups)
    if isinstance(config.optimizer, ScheduleFreeConfig) and not isinstance(config.scheduler, ConstantConfig):
        say(f"schedule_free is made for scheduler=constant; here it has {config.scheduler.name}")
    for leak in masks.noncausal_warnings(config):
        say(leak)
    if reads_documents(config) and session.streams["train"].n_documents == 1:
        say("the train split is one document: mask.within_documents hides nothing of it")
    if session.parent is not None:
        stood = f"begins where {session.parent.run.path} stands at step {session.state.step}"
        say(stood + (f", with {'; '.join(changes)}" if changes else ""))
    elif session.state.step:
        say(f"goes on from step {session.state.step}" + (f" with {'; '.join(changes)}" if changes else ""))
    for note in session.continuation.notes:
        say(note)
    if (change := lr_change(session)) is not None:
        say(change)
    say(f"run directory {session.run.path}")


def lr_change(session: Session) -> str | None:
    """How the learning rate changes at once where a run continues with another number of steps or as a fork, or None.

    Of a schedule that had ended, the learning rate of its last step is the old one.
    """
    config, state = session.config, session.state
    if state.optimizer is None or state.step >= config.trainer.max_steps:
        return None
    before, max_steps = config, session.continuation.changes.get("trainer.max_steps", (None, None))[0]
    if session.parent is not None:
        before, max_steps = session.parent.config, session.parent.config.trainer.max_steps
    if max_steps is None or not state.step:
        return None
    plateau = state.plateau if before.scheduler == config.scheduler else None
    old = before.optimizer.lr * schedules.factor(min(state.step, max_steps - 1), max_steps, before.scheduler, plateau)
    new = config.optimizer.lr * schedules.factor(state.step, config.trainer.max_steps, config.scheduler, state.plateau)
    if old == new:
        return None
    return (
        f"the learning rate changes at step {state.step:,} from {old:.3g} (a schedule of {max_steps:,} steps) "
        f"to {new:.3g} (of {config.trainer.max_steps:,} steps)"
    )
