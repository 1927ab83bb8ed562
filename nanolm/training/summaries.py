"""Fill the Summary of a run from the state of its training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nanolm.baselines import compressors
from nanolm.baselines.entropy import bigram_loss, unigram_loss
from nanolm.config.budget import budget_of
from nanolm.data.tokens.stream import Stream
from nanolm.model import masks
from nanolm.model.build import FittedModel, count_parameters
from nanolm.model.lora import trained_parameters
from nanolm.model.shapes import has_ngram_mix
from nanolm.run_layout import checkpoints_by_step
from nanolm.runs import provenance
from nanolm.runs.summary import FITTED, STOPPED_EARLY, TRAINED, Summary
from nanolm.training import meters
from nanolm.training.checkpoints.state import TrainState
from nanolm.training.determinism import is_deterministic
from nanolm.training.precision import device_facts
from nanolm.training.setup import Setup

# The baselines are counted at every start, at about ten million tokens per second.
COUNTABLE_TOKENS = 2**27

# What a resumed run keeps of its earlier sessions until it ends.
KEPT = (
    *("step", "tokens", "seconds", "tokens_per_second", "peak_memory_bytes", "skipped_updates", "entries"),
    *("best_val_loss", "best_val_sample", "best_step", "final_val_loss", "final_val_sample", "bits_per_byte"),
    *("best_ema_val_loss", "final_ema_val_loss", "test_history"),
    *("wandb_id", "wandb_mode", "wandb_project", "wandb_entity"),
)


def initial(setup: Setup, before: Summary, choices: dict[str, str], group: str | None) -> Summary:
    """Build the summary of a run that starts or resumes.

    Args:
        before: the summary of the earlier sessions; empty for a new run.
        choices: the option chosen in each config group.
        group: the sweep that the run belongs to; None keeps that of the earlier sessions.
    """
    config, state, streams, vocab_size = setup.config, setup.state, setup.streams, setup.tokenizer.vocab_size
    on_main = setup.ranks.run_on_main
    kept = {name: getattr(before, name) for name in KEPT}
    facts: dict[str, Any] = {**device_facts(state.device), **setup.about, **kept}
    return Summary(
        status="running",
        kind=FITTED if isinstance(state.model, FittedModel) else TRAINED,
        budget=budget_of(config.trainer).as_dict(),
        max_steps=config.trainer.steps,
        has_checkpoint=on_main(lambda: bool(checkpoints_by_step(setup.run.checkpoints))),
        continued_from=state.step if before.status == STOPPED_EARLY else before.continued_from,
        choices=choices,
        group=group or before.group,
        seed=config.seed,
        parameters=count_parameters(state.model),
        trained_parameters=sum(parameter.numel() for parameter in trained_parameters(state.model).values()),
        flops_per_token=setup.flops_per_token,
        vocab_size=vocab_size,
        lossless=setup.tokenizer.lossless,
        is_noncausal=bool(masks.noncausal_warnings(config)),
        train_tokens=len(streams["train"].tokens),
        counted_tokens=len(streams["train"].tokens) if has_ngram_mix(config) else None,
        val_tokens=len(streams["val"].tokens),
        val_scored_tokens=streams["val"].scored_tokens,
        baseline_losses=on_main(lambda: _baseline_losses(streams, vocab_size)),
        baseline_bits_per_byte=on_main(lambda: compressors.validation_bits_per_byte(setup.corpus)),
        device=str(state.device),
        ranks=setup.ranks.world_size,
        deterministic=is_deterministic(config.trainer.deterministic, state.device),
        git=provenance.git(Path.cwd()),
        parent=before.parent if setup.parent is None else setup.parent.reference(),
        **facts,
    )


def machine_changes(before: Summary, now: Summary) -> list[str]:
    """Describe changes of the number of ranks and of the precision since the last session."""
    changes = {name: (getattr(before, name), getattr(now, name)) for name in ("ranks", "precision")}
    return [f"{name}: {old} -> {new}" for name, (old, new) in changes.items() if old not in (None, new)]


def results(state: TrainState, val: Stream) -> dict[str, Any]:
    """The fields of a summary that training determines; None where nothing was measured."""
    best, best_sample = _measured(state.best_val_loss), state.best_sample
    if best_sample and state.best_step == state.step and not state.val_sample:
        # The last evaluation was the best one, and exact.
        best, best_sample = _measured(state.val_loss), 0
    has_averages = state.averages is not None
    return {
        "step": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.timed_tokens / state.timed_seconds, 1) if state.timed_seconds else None,
        "peak_memory_bytes": meters.peak_memory(state.device),
        "best_val_loss": best,
        "best_val_sample": best_sample or None,
        "best_step": state.best_step,
        "final_val_loss": _measured(state.val_loss),
        "final_val_sample": state.val_sample or None,
        "bits_per_byte": None if best is None else val.bits_per_byte(best),
        "best_ema_val_loss": _measured(state.best_ema_val_loss) if has_averages else None,
        "final_ema_val_loss": _measured(state.ema_val_loss) if has_averages else None,
        "skipped_updates": None if state.number_format.scaler is None else state.skipped_updates,
        "entries": state.entries or None,
    }


def _baseline_losses(streams: dict[str, Stream], vocab_size: int) -> dict[str, float]:
    """Losses of counted n-grams on the validation tokens, in nats per token; empty if counting takes minutes."""
    train, val = streams["train"], streams["val"]
    if len(train.tokens) > COUNTABLE_TOKENS:
        return {}
    masks = [None if stream.scored is None else stream.scored.mask for stream in (train, val)]
    return {
        "counted_unigram": unigram_loss(train.tokens, val.tokens, vocab_size, *masks),
        "counted_bigram": bigram_loss(train.tokens, val.tokens, vocab_size, *masks),
    }


def _measured(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None
