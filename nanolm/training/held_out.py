"""The loss of the selected checkpoint on the test split, which is scored once, when a run has ended."""

from __future__ import annotations

from typing import Any

import torch

from nanolm.config.mask import reads_documents
from nanolm.errors import CheckpointError
from nanolm.runs.summary import SplitScore, Summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.session import Session
from nanolm.training.setup import Setup, build_model
from nanolm.training.validation import exact_loss

TEST = "test"
# What checkpoints are selected by.
CHOSEN_BY = "best_val_loss"


def score_test_split(session: Session, summary: Summary) -> dict[str, Any]:
    """Score the checkpoint with the best validation loss on the test split.

    All ranks load it into another model, divided among them as the one in training, which stays as it is. The weights
    are those whose validation loss chose the checkpoint: not the averages of trainer.ema_decay and
    trainer.average_last, which choose none, but those of schedule-free optimizers, which their checkpoints consist of.

    Args:
        summary: with the scores of earlier sessions, which stay in its history.

    Returns:
        The fields of the summary; none without a test split, and none if the checkpoint was removed or damaged.
    """
    setup, log = session.setup, session.log
    if TEST not in setup.streams:
        return {}
    step = setup.state.best_step
    try:
        loss = _loss(setup, step)
    except CheckpointError as error:
        log.say(f"the test split is not scored: {error.found} ({error.where})")
        return {}
    bits_per_byte = setup.streams[TEST].bits_per_byte(loss)
    log.say(f"test loss {loss:.4f}  {bits_per_byte:.4f} bits per byte, of step {step} (best validation loss)")
    score = SplitScore(
        loss=loss, bits_per_byte=bits_per_byte, step=step, chosen_by=CHOSEN_BY, steps_done=setup.state.step
    )
    return {
        "test_loss": loss,
        "test_bits_per_byte": bits_per_byte,
        "test_step": step,
        "test_chosen_by": CHOSEN_BY,
        "test_history": [*summary.test_history, score],
    }


def _loss(setup: Setup, step: int) -> float:
    """The loss of the checkpoint of a step on the test split, in nats per token; the same on all ranks."""
    config, vocab_size, ranks = setup.config, setup.tokenizer.vocab_size, setup.ranks
    device, number_format = setup.state.device, setup.state.number_format
    # The other ranks wait until rank 0 has written it.
    found = ranks.run_on_main(lambda: checkpoint.at_step(setup.run.checkpoints, step))
    # Initialization draws from the generator that a caller of the Python API may use.
    with torch.random.fork_rng(devices=[]):
        model, _ = ranks.run_on_all(
            lambda: build_model(config, vocab_size, found.load_weights, ranks, device, number_format, is_trained=False)
        )
    return exact_loss(
        model.requires_grad_(False),
        setup.streams[TEST],
        context_length=config.size.context_length,
        stride=config.size.context_length,
        vocab_size=vocab_size,
        device=device,
        number_format=number_format,
        reads_documents=reads_documents(config),
        ranks=ranks,
    )
