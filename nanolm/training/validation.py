"""The exact loss over a split: every token scored once, in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from nanolm.data.batches import rows_at
from nanolm.data.stream import Rows, Stream, Tokens, gather
from nanolm.training.precision import NumberFormat
from nanolm.training.step import Forward, next_token_loss

# Logits of one forward pass, in numbers: 2^25 of them are 128 MiB in fp32.
LOGITS_AT_ONCE = 2**25
TOKENS_AT_ONCE = 2**14


def split_loss(
    model: nn.Module,
    forward: Forward,
    stream: Stream,
    *,
    context_length: int,
    stride: int,
    vocab_size: int,
    device: torch.device,
    number_format: NumberFormat,
) -> float:
    """Mean nats a token over a split as it is trained on: as one text (`exact_loss`), or row by row (`rows_loss`)."""
    if stream.rows is not None:
        return rows_loss(model, forward, stream.tokens, stream.rows, vocab_size, device, number_format)
    return exact_loss(
        model,
        forward,
        stream.tokens,
        context_length=context_length,
        stride=stride,
        vocab_size=vocab_size,
        device=device,
        number_format=number_format,
    )


@torch.no_grad()
def rows_loss(
    model: nn.Module,
    forward: Forward,
    tokens: Tokens,
    rows: Rows,
    vocab_size: int,
    device: torch.device,
    number_format: NumberFormat,
) -> float:
    """Mean nats a token over rows, each behind nothing but its own beginning; padding is not scored."""
    was_training = model.training
    model.eval()
    total = 0.0
    at_once = _rows_at_once(vocab_size, rows.context_length)
    for start in range(0, len(rows), at_once):
        batch = rows_at(tokens, rows, np.arange(start, min(start + at_once, len(rows))))
        inputs_BxT, targets_BxT = (torch.from_numpy(side).to(device) for side in batch)
        with number_format.autocast():
            logits_BxTxV = forward(inputs_BxT)
        total += next_token_loss(logits_BxTxV, targets_BxT, reduction="sum").item()
    model.train(was_training)
    return total / rows.n_targets


def _rows_at_once(vocab_size: int, context_length: int) -> int:
    return max(1, min(TOKENS_AT_ONCE, LOGITS_AT_ONCE // vocab_size) // context_length)


@torch.no_grad()
def exact_loss(
    model: nn.Module,
    forward: Forward,
    tokens: Tokens,
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
    rows_at_once = _rows_at_once(vocab_size, context_length)
    for rows_BxT1, scored in _stretches(tokens, context_length, stride, rows_at_once):
        rows = torch.from_numpy(rows_BxT1.astype(np.int64)).to(device)
        with number_format.autocast():
            logits_BxTxV = forward(rows[:, :-1])
        total += next_token_loss(logits_BxTxV[:, -scored:], rows[:, 1:][:, -scored:], reduction="sum").item()
    model.train(was_training)
    return total / (len(tokens) - 1)


def _stretches(tokens: Tokens, context_length: int, stride: int, rows_at_once: int) -> Iterator[tuple[np.ndarray, int]]:
    """Rows of tokens of equal length, and how many at the end of each row are scored as targets."""
    assert 1 <= stride <= context_length, f"stride {stride}, context_length {context_length}"
    n_targets = len(tokens) - 1
    # The first window has nothing before it: all of its targets are scored.
    first = min(context_length, n_targets)
    yield tokens[: first + 1][None], first
    ends = np.arange(first + stride, n_targets + 1, stride)
    for start in range(0, len(ends), rows_at_once):
        batch = ends[start : start + rows_at_once]
        yield gather(tokens, batch - context_length, context_length + 1), stride
    done = int(ends[-1]) if len(ends) else first
    if done < n_targets:
        yield tokens[n_targets - context_length :][None], n_targets - done
