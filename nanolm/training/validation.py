"""The exact loss over a split: every token scored once, in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from nanolm.training.precision import NumberFormat
from nanolm.training.step import Forward, next_token_loss

# Logits of one forward pass, in numbers: 2^25 of them are 128 MiB in fp32.
LOGITS_AT_ONCE = 2**25
TOKENS_AT_ONCE = 2**14


@torch.no_grad()
def exact_loss(
    model: nn.Module,
    forward: Forward,
    tokens: np.ndarray,
    *,
    context_length: int,
    stride: int,
    vocab_size: int,
    device: torch.device,
    number_format: NumberFormat,
) -> float:
    """Mean nats a token over a split, without dropout.

    The split is scored in stretches of `stride` tokens, each seen behind up to context_length - stride tokens of
    what came before. With stride = context_length the stretches lie side by side (cheapest, and what training sees);
    a smaller stride gives every token more context and costs context_length / stride times as much.

    Returns:
        The sum over all tokens but the first, which nothing precedes, divided by their number.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    rows_at_once = max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocab_size) // context_length)
    for rows_BxT1, scored in _stretches(tokens, context_length, stride, rows_at_once):
        rows = torch.from_numpy(rows_BxT1.astype(np.int64)).to(device)
        with number_format.autocast():
            logits_BxTxV = forward(rows[:, :-1])
        total += next_token_loss(logits_BxTxV[:, -scored:], rows[:, 1:][:, -scored:], reduction="sum").item()
    model.train(was_training)
    return total / (len(tokens) - 1)


def _stretches(
    tokens: np.ndarray, context_length: int, stride: int, rows_at_once: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of tokens of equal length, and how many at the end of each row are scored as targets."""
    assert 1 <= stride <= context_length, f"stride {stride}, context_length {context_length}"
    n_targets = len(tokens) - 1
    # The first window has nothing before it: all of its targets are scored.
    first = min(context_length, n_targets)
    yield tokens[None, : first + 1], first
    ends = np.arange(first + stride, n_targets + 1, stride)
    for start in range(0, len(ends), rows_at_once):
        batch = ends[start : start + rows_at_once]
        yield tokens[(batch - context_length)[:, None] + np.arange(context_length + 1)], stride
    done = int(ends[-1]) if len(ends) else first
    if done < n_targets:
        yield tokens[None, n_targets - context_length :], n_targets - done
