"""The evaluation every trainer.eval_every steps: the validation loss and a text sample."""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import torch

from nanolm.config.mask import reads_documents
from nanolm.data.conversation import response_ends, template_of
from nanolm.data.tokens.stream import Stream
from nanolm.errors import NanolmError
from nanolm.model.sampling import sample
from nanolm.runs.metrics import VAL, MetricsRow
from nanolm.training import early_stop, ema, schedules, val_sample
from nanolm.training.estimate import estimated_loss
from nanolm.training.session import Session
from nanolm.training.setup import Setup
from nanolm.training.validation import exact_loss


def evaluate(session: Session, began: float, is_last: bool = True) -> tuple[bool, str]:
    """Score the validation split, write a sample, and record both.

    With trainer.val_tokens, the same part of the split is scored every time, and the best checkpoint is chosen by it.
    The last evaluation of a run scores the whole split as well, and reports this exact loss.

    Args:
        session: updated with the losses.
        began: start of the run by time.perf_counter, shifted by the seconds of earlier sessions.
        is_last: whether the run ends with it.

    Returns:
        Whether the loss is the lowest so far, and the sample.
    """
    setup, log = session.setup, session.log
    config, state = setup.config, setup.state
    state.val_loss, state.val_sample = val_loss(setup)
    if not math.isfinite(state.val_loss):
        raise session.diverged_error(state.val_loss, math.nan, math.nan)
    state.plateau = schedules.after_evaluation(state.plateau, state.val_loss, config.scheduler)
    early_stop.after_evaluation(state, config.trainer)
    is_best = state.val_loss < state.best_val_loss
    if is_best:
        state.best_val_loss, state.best_step, state.best_sample = state.val_loss, state.step, state.val_sample
    ema_loss = _score_averages(setup)
    if state.val_sample and (is_last or early_stop.has_stalled(state, config.trainer)):
        state.val_loss, state.val_sample = split_loss(setup, "val"), 0
        ema_loss = _score_averages(setup, is_exact=True)
    text = ""
    # All ranks must run a sharded model.
    if config.trainer.sample_tokens and (setup.ranks.is_main or state.is_sharded):
        text = write_sample(setup)
        log.sample(state.step, text)
    n_batches = config.trainer.estimate_batches
    estimates = {split: estimated_loss(setup, split, n_batches) for split in ("train", "val")} if n_batches else {}
    state.seconds = time.perf_counter() - began
    bits_per_byte = setup.streams["val"].bits_per_byte(state.val_loss)
    log.row(
        MetricsRow(
            step=state.step,
            split=VAL,
            loss=state.val_loss,
            scored_tokens=state.val_sample or None,
            ema_loss=ema_loss,
            bits_per_byte=bits_per_byte,
            estimated_loss=estimates.get("val"),
            estimated_train_loss=estimates.get("train"),
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
        )
    )
    sample = f" (estimate over {state.val_sample:,} tokens)" if state.val_sample else ""
    log.say(
        f"step {state.step:>6}  val loss {state.val_loss:.4f}{sample}  {bits_per_byte:.4f} bits per byte"
        + (f"  averaged weights {state.ema_val_loss:.4f}" if ema_loss is not None else "")
        + "".join(f"  {split} estimate {loss:.4f}" for split, loss in estimates.items())
        + ("  (best so far)" if is_best else "")
    )
    return is_best, text


def _score_averages(setup: Setup, is_exact: bool = False) -> float | None:
    """The validation loss of the averaged weights; None for a run without them.

    Args:
        is_exact: score the whole split, without choosing the best step by it.
    """
    state = setup.state
    if state.averages is None:
        return None
    if ema.decay_at(setup.config.trainer, state.step):
        with ema.swapped(state.averages, state.model):
            state.ema_val_loss = split_loss(setup, "val") if is_exact else val_loss(setup)[0]
    else:
        # The averages equal the weights.
        state.ema_val_loss = state.val_loss
    if not is_exact:
        state.best_ema_val_loss = min(state.best_ema_val_loss, state.ema_val_loss)
    return state.ema_val_loss


def val_loss(setup: Setup) -> tuple[float, int]:
    """Return the validation loss in nats per token, and the number of tokens that it is an estimate over; 0: exact."""
    stream, limit = setup.streams["val"], setup.config.trainer.val_tokens
    if limit is None or limit >= stream.scored_tokens:
        return split_loss(setup, "val"), 0
    pieces = val_sample.pieces_of(stream, limit, setup.config.size.context_length)
    n_tokens = sum(piece.scored_tokens for piece in pieces)
    return sum(stream_loss(setup, piece) * piece.scored_tokens for piece in pieces) / n_tokens, n_tokens


def split_loss(setup: Setup, split: str) -> float:
    """Return the exact loss over a split in nats per token, in windows as in training."""
    return stream_loss(setup, setup.streams[split])


def stream_loss(setup: Setup, stream: Stream) -> float:
    """Return the exact loss over some tokens in nats per token, in windows as in training."""
    context_length = setup.config.size.context_length
    return exact_loss(
        setup.state.model,
        stream,
        context_length=context_length,
        stride=context_length,
        vocab_size=setup.tokenizer.vocab_size,
        device=setup.state.device,
        number_format=setup.state.number_format,
        reads_documents=reads_documents(setup.config),
        ranks=setup.ranks,
        compiled_loss=setup.evaluation_loss,
    )


def write_sample(setup: Setup) -> str:
    """Generate trainer.sample_tokens tokens after a line end, or after the first validation token if there is none.

    For dataset=instructions, generate the response to the first prompt of the validation split, after that prompt.
    """
    config, state, tokenizer, val = setup.config, setup.state, setup.tokenizer, setup.streams["val"]
    template = template_of(config.dataset)
    prompt = val.tokens[:1]
    if val.scored is not None:
        prompt = val.tokens[: max(1, val.scored.first)]
    else:
        with contextlib.suppress(NanolmError):
            line_end = tokenizer.encode("\n")
            # Some tokenizers drop line ends.
            prompt = line_end if len(line_end) else prompt
    tokens = sample(
        state.model,
        torch.from_numpy(prompt.astype(np.int64)).to(state.device),
        config.trainer.sample_tokens,
        context_length=config.size.context_length,
        seed=config.seed,
    )
    text = tokenizer.decode(tokens.tolist())
    if template is None:
        return text
    for end in response_ends(template, tokenizer):
        text = "".join(text.partition(end)[:2])
    return tokenizer.decode(prompt.tolist()) + text
