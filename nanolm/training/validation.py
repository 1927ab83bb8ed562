"""The exact loss over a split: every token scored once, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanolm.data.batches import IGNORE_INDEX, document_ids, gather_rows
from nanolm.data.tokens.stream import Rows, Stream, Tokens, gather_windows
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.precision import NumberFormat
from nanolm.training.step import Forward, next_token_loss

# Logits of one forward pass, in numbers: 2^25 of them are 128 MiB in fp32.
LOGITS_AT_ONCE = 2**25
TOKENS_AT_ONCE = 2**14


@runtime_checkable
class ScoresTargets(Protocol):
    """A model that finds the probability of one token without those of all others, and is scored by it."""

    def target_log_probabilities(self, tokens_BxT: torch.Tensor, targets_BxT: torch.Tensor) -> torch.Tensor:
        """Of each target, the log-probability that it follows its position, BxT."""


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
    reads_documents: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
) -> float:
    """Mean nats a token over a split as it is trained on: as one text (`exact_loss`), or row by row (`rows_loss`).

    Args:
        ranks: each scores its share of the rows, and all get the same loss.
    """
    if stream.rows is not None:
        return rows_loss(model, forward, stream.tokens, stream.rows, vocab_size, device, number_format, ranks)
    return exact_loss(
        model,
        forward,
        stream.tokens,
        context_length=context_length,
        stride=stride,
        vocab_size=vocab_size,
        device=device,
        number_format=number_format,
        documents=stream.documents if reads_documents else None,
        ranks=ranks,
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
    ranks: Ranks = SINGLE_PROCESS,
) -> float:
    """Mean nats a token over rows, each behind nothing but its own beginning; padding is not scored."""
    was_training = model.training
    model.eval()
    total = 0.0
    at_once = _rows_at_once(vocab_size, rows.context_length) * ranks.world_size
    for start in range(0, len(rows), at_once):
        rows_B, counts = _own_share(np.arange(start, min(start + at_once, len(rows))), ranks)
        inputs_BxT, targets_BxT = (torch.from_numpy(side).to(device) for side in gather_rows(tokens, rows, rows_B))
        total += counts * _summed_loss(model, forward, [inputs_BxT], targets_BxT, number_format)
    model.train(was_training)
    return ranks.sum(total) / rows.n_targets


def _own_share(rows_B: np.ndarray, ranks: Ranks) -> tuple[np.ndarray, bool]:
    """This rank's share of the rows, and whether it counts.

    A rank that has none left takes one that does not count: a sharded model runs on all ranks or on none.
    """
    own_B = rows_B[ranks.rank :: ranks.world_size]
    return (own_B, True) if len(own_B) else (rows_B[:1], False)


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
    documents: np.ndarray | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> float:
    """Mean nats a token over a split, without dropout.

    The split is scored in stretches of `stride` tokens, each seen behind up to context_length - stride tokens of
    what came before. With stride = context_length the stretches lie side by side (cheapest, and what training sees);
    a smaller stride gives every token more context and costs context_length / stride times as much.

    The first token of a document is scored as every other, by the last position of the document before it: a mask
    within documents hides what came before from the tokens that follow it alone.

    Args:
        documents: where each document begins in the tokens, for a model that reads which one each input is of; None:
            the model reads tokens alone.
        ranks: each scores its share.

    Returns:
        The sum over all tokens but the first, which nothing precedes, divided by their number.
    """
    was_training = model.training
    model.eval()
    total = 0.0
    rows_at_once = _rows_at_once(vocab_size, context_length) * ranks.world_size
    for all_starts_B, length, scored in _stretches(len(tokens) - 1, context_length, stride, rows_at_once):
        starts_B, counts = _own_share(all_starts_B, ranks)
        rows = torch.from_numpy(gather_windows(tokens, starts_B, length + 1).astype(np.int64)).to(device)
        read = [] if documents is None else [torch.from_numpy(document_ids(documents, starts_B, length)).to(device)]
        targets_BxS = rows[:, 1:][:, -scored:]
        total += counts * _summed_loss(model, forward, [rows[:, :-1], *read], targets_BxS, number_format)
    model.train(was_training)
    return ranks.sum(total) / (len(tokens) - 1)


def _summed_loss(
    model: nn.Module,
    forward: Forward,
    inputs: Sequence[torch.Tensor],
    targets_BxS: torch.Tensor,
    number_format: NumberFormat,
) -> float:
    """Nats of all targets, which are those of the last S positions; inputs are as `forward` takes them."""
    n_scored = targets_BxS.shape[1]
    if isinstance(model, ScoresTargets):
        inputs_BxT = inputs[0]
        targets_BxT = F.pad(targets_BxS, (inputs_BxT.shape[1] - n_scored, 0), value=IGNORE_INDEX)
        found_BxT = model.target_log_probabilities(inputs_BxT, targets_BxT.clamp(min=0))
        return -found_BxT[targets_BxT != IGNORE_INDEX].sum().item()
    with number_format.autocast():
        logits_BxTxV = forward(*inputs)
    return next_token_loss(logits_BxTxV[:, -n_scored:], targets_BxS, reduction="sum").item()


def _stretches(
    n_targets: int, context_length: int, stride: int, rows_at_once: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Where rows begin, how many inputs each has, and how many targets at its end are scored."""
    assert 1 <= stride <= context_length, f"stride {stride}, context_length {context_length}"
    # The first window has nothing before it: all of its targets are scored.
    first = min(context_length, n_targets)
    yield np.array([0]), first, first
    ends = np.arange(first + stride, n_targets + 1, stride)
    for start in range(0, len(ends), rows_at_once):
        batch = ends[start : start + rows_at_once]
        yield batch - context_length, context_length, stride
    done = int(ends[-1]) if len(ends) else first
    if done < n_targets:
        yield np.array([n_targets - context_length]), context_length, n_targets - done
