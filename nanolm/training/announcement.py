"""The first lines of train.log, which describe the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nanolm.config.batch_schedule import describe_stages, stages
from nanolm.config.budget import budget_of
from nanolm.config.lr_scaling import resolve_optimizer
from nanolm.config.mask import reads_documents
from nanolm.config.optimizer import ScheduleFreeConfig
from nanolm.config.scheduler import ConstantConfig
from nanolm.model import backend_choice, masks
from nanolm.model.budget import describe_steps
from nanolm.runs.summary import Summary
from nanolm.training import schedules
from nanolm.training.checkpoints.manifest import max_steps_of
from nanolm.training.optimizers import build as optimizers
from nanolm.training.setup import Setup
from nanolm.wording import LOSSY


def announce(
    setup: Setup, say: Callable[[str], None], summary: Summary, skipped: list[str], changes: list[str]
) -> None:
    """Describe a run that starts or resumes.

    Args:
        say: prints one message.
        skipped: damaged checkpoints.
        changes: settings that have changed since the last session or since the parent.
    """
    config = setup.config
    for problem in skipped:
        say(f"skipped a damaged checkpoint: {problem}")
    for note in setup.corpus.notes:
        say(note)
    chosen = summary.choices
    parts = [chosen.get(group, getattr(getattr(config, group), "name", "")) for group in ("model", "size", "dataset")]
    is_parallel = setup.ranks.world_size > 1
    amount = "a table of counts" if summary.is_fitted else summary.describe_parameters()
    say(
        f"{' '.join(part for part in parts if part)}: {amount}, "
        f"{summary.train_tokens:,} train + {summary.val_tokens:,} val tokens, vocab size {summary.vocab_size:,}, "
        f"on {summary.device} in {summary.precision}"
        + (", compiled" if setup.is_compiled else "")
        + (f", {setup.ranks.world_size} ranks by {config.trainer.parallel.name}" if is_parallel else "")
    )
    if not budget_of(config.trainer).in_steps and not summary.is_fitted:
        say(describe_steps(config, summary.train_tokens))
    if len(stages(config)) > 1 and not summary.is_fitted:
        say(describe_stages(config))
    attention = backend_choice.describe_backends(config, setup.state.device.type)
    if attention is not None:
        say(attention)
    if summary.is_lossy:
        say(f"{LOSSY}: bits per byte refer to the original text")
    if setup.state.optimizer is not None and (
        groups := optimizers.describe_groups(resolve_optimizer(config), setup.state.optimizer)
    ):
        say(groups)
    if isinstance(config.optimizer, ScheduleFreeConfig) and not isinstance(config.scheduler, ConstantConfig):
        say(f"schedule_free is designed for scheduler=constant, not {config.scheduler.name}")
    for leak in masks.noncausal_warnings(config):
        say(leak)
    for note in _instruction_notes(setup):
        say(note)
    if reads_documents(config) and setup.streams["train"].n_documents == 1:
        say("the train split is one document: mask.within_documents has no effect on it")
    with_changes = f" with {'; '.join(changes)}" if changes else ""
    if setup.parent is not None:
        say(f"forks {setup.parent.run.path} at step {setup.state.step}" + with_changes)
    elif setup.state.step:
        say(f"resumes from step {setup.state.step}" + with_changes)
    for note in setup.resume_info.notes:
        say(note)
    if (change := lr_change(setup)) is not None:
        say(change)
    say(f"run directory {setup.run.path}")


def _instruction_notes(setup: Setup) -> Iterator[str]:
    """Say how much of a dataset with prompts is scored, and whether conversations exceed the context."""
    train, context_length = setup.streams["train"], setup.config.size.context_length
    if train.scored is None:
        return
    scored = [f"{stream.scored_tokens:,} of {len(stream.tokens):,} {split}" for split, stream in setup.streams.items()]
    yield f"scored are the responses only: {' and '.join(scored)} tokens"
    lengths = np.diff(train.documents.astype(np.int64), append=len(train.tokens))
    if n_long := int((lengths > context_length).sum()):
        yield (
            f"{n_long:,} of {len(lengths):,} train conversations are longer than the context of {context_length:,} "
            f"tokens (the longest has {lengths.max():,}): what follows is learned without their beginning"
        )


def lr_change(setup: Setup) -> str | None:
    """Describe a jump of the learning rate: a run resumes with another number of steps, or is a fork.

    The old learning rate of a schedule that had ended is that of its last step.

    Returns:
        None if the learning rate does not jump.
    """
    config, state = setup.config, setup.state
    if state.optimizer is None or state.step >= config.trainer.steps:
        return None
    before, max_steps = config, setup.resume_info.max_steps
    if setup.parent is not None:
        before, max_steps = setup.parent.config, max_steps_of(setup.parent.checkpoint.manifest)
    if max_steps is None or not state.step:
        return None
    plateau = state.plateau if before.scheduler == config.scheduler else None
    old = before.optimizer.lr * schedules.factor(min(state.step, max_steps - 1), max_steps, before.scheduler, plateau)
    new = config.optimizer.lr * schedules.factor(state.step, config.trainer.steps, config.scheduler, state.plateau)
    if old == new:
        return None
    return (
        f"the learning rate changes at step {state.step:,} from {old:.3g} (a schedule of {max_steps:,} steps) "
        f"to {new:.3g} (of {config.trainer.steps:,} steps)"
    )
