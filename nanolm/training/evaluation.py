"""What a run does every trainer.eval_every steps: the exact validation loss and a sample of its writing."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from nanolm.config.mask import reads_documents
from nanolm.errors import NanolmError
from nanolm.model.sampling import sample
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.training import ema, schedules
from nanolm.training.setup import Session, Setup, diverged
from nanolm.training.validation import split_loss


def evaluate(session: Session, began: float) -> tuple[bool, str]:
    """Scores the validation split exactly and writes a sample; returns whether it is the best yet, and the sample.

    Args:
        began: when the run did, by time.perf_counter, earlier sessions counted in.
    """
    config, state, log = session.config, session.state, session.log
    state.val_loss = exact_loss(session, "val")
    if not math.isfinite(state.val_loss):
        raise diverged(session, state.val_loss, math.nan, math.nan)
    state.plateau = schedules.after_evaluation(state.plateau, state.val_loss, config.scheduler)
    is_best = state.val_loss < state.best_val_loss
    if is_best:
        state.best_val_loss, state.best_step = state.val_loss, state.step
    text = ""
    # A sharded model is run by all ranks or by none.
    if config.trainer.sample_tokens and (session.ranks.is_main or state.is_sharded):
        text = write_sample(session)
        log.sample(state.step, text)
    ema_loss = _score_averages(session)
    state.seconds = time.perf_counter() - began
    bits_per_byte = session.streams["val"].bits_per_byte(state.val_loss)
    log.row(
        MetricsRow(
            step=state.step,
            split=VAL,
            loss=state.val_loss,
            ema_loss=ema_loss,
            bits_per_byte=bits_per_byte,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
        )
    )
    log.say(
        f"step {state.step:>6}  val loss {state.val_loss:.4f}  {bits_per_byte:.4f} bits per byte"
        + (f"  averaged weights {state.ema_val_loss:.4f}" if ema_loss is not None else "")
        + ("  (best so far)" if is_best else "")
    )
    return is_best, text


def _score_averages(setup: Setup) -> float | None:
    """The exact validation loss of the averaged weights; None for a run without them."""
    state = setup.state
    if state.averages is None:
        return None
    with ema.swapped(state.averages, state.model):
        state.ema_val_loss = exact_loss(setup, "val")
    state.best_ema_val_loss = min(state.best_ema_val_loss, state.ema_val_loss)
    return state.ema_val_loss


def exact_loss(setup: Setup, split: str) -> float:
    """Mean nats a token of a split, each token behind what training shows it."""
    context_length = setup.config.size.context_length
    return split_loss(
        setup.state.model,
        setup.state.model,
        setup.streams[split],
        context_length=context_length,
        stride=context_length,
        vocab_size=setup.tokenizer.vocab_size,
        device=setup.state.device,
        number_format=setup.state.number_format,
        reads_documents=reads_documents(setup.config),
        ranks=setup.ranks,
    )


def write_sample(setup: Setup) -> str:
    """The model's continuation of a line end, or of the validation text's first token where there is none."""
    config, state, tokenizer = setup.config, setup.state, setup.tokenizer
    try:
        prompt = tokenizer.encode("\n")
    except NanolmError:
        prompt = setup.streams["val"].tokens[:1]
    if not len(prompt):  # a tokenizer that drops line ends
        prompt = setup.streams["val"].tokens[:1]
    tokens = sample(
        state.model,
        torch.from_numpy(prompt.astype(np.int64)).to(state.device),
        config.trainer.sample_tokens,
        context_length=config.size.context_length,
        seed=config.seed,
    )
    return tokenizer.decode(tokens.tolist())
