"""The exact loss over a split: every token is scored once, in order; of a dataset with prompts, every response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanolm.data.batches import IGNORE_INDEX, document_ids, gather_rows, gather_targets
from nanolm.data.tokens.stream import Rows, Stream, Tokens
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.precision import NumberFormat
from nanolm.training.step import next_token_loss

# Limits of one forward pass: 2^25 logits take 128 MiB in fp32.
MAX_LOGITS = 2**25
MAX_TOKENS = 2**14


@runtime_checkable
class ScoresTargets(Protocol):
    """A model that computes the probabilities of given targets without those of all other tokens."""

    def target_log_probabilities(self, tokens_BxT: torch.Tensor, targets_BxT: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target, BxT."""


class _Batch(NamedTuple):
    """Inputs of the model, and the targets of their last S positions; a batch that only pads does not count."""

    inputs: Sequence[np.ndarray]
    targets_BxS: np.ndarray  # noqa: N815  the name shows the shape
    counts: bool


@torch.no_grad()
def exact_loss(
    model: nn.Module,
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
    """Return the mean loss over a split in nats per token, without dropout.

    A split with rows is scored row by row: each row sees its own inputs only, and padding is not scored. Any other
    split is scored in windows that advance by `stride` tokens, each with up to context_length - stride tokens of
    earlier context. stride = context_length gives windows as in training and is fastest; a smaller stride gives every
    token more context at context_length / stride times the cost. Every token but the first is scored. The first token
    of a document is scored as the next token of the document before, also under a document mask.

    Args:
        model: evaluated in eval mode, and returned to its previous mode.
        context_length: maximum number of inputs.
        stride: from 1 to context_length; ignored for rows.
        vocab_size: number of logits per position, which limits the batch size.
        reads_documents: whether the model takes the document index of each input.
        ranks: each scores its share of the split; all return the same loss.
    """
    batch_size = max(1, min(MAX_TOKENS, MAX_LOGITS // vocab_size) // context_length)
    if stream.rows is not None:
        batches = _row_batches(stream.tokens, stream.rows, batch_size, ranks)
    else:
        batches = _window_batches(stream, reads_documents, context_length, stride, batch_size, ranks)
    was_training = model.training
    model.eval()
    total = 0.0
    for inputs, targets_BxS, counts in batches:
        total += counts * summed_loss(
            model,
            [torch.from_numpy(array).to(device) for array in inputs],
            torch.from_numpy(targets_BxS).to(device),
            number_format,
        )
    model.train(was_training)
    return ranks.sum(total) / stream.scored_tokens


def _row_batches(tokens: Tokens, rows: Rows, batch_size: int, ranks: Ranks) -> Iterator[_Batch]:
    step = batch_size * ranks.world_size
    for start in range(0, len(rows), step):
        rows_B, counts = _share_of(np.arange(start, min(start + step, len(rows))), ranks)
        inputs_BxT, targets_BxT = gather_rows(tokens, rows, rows_B)
        yield _Batch([inputs_BxT], targets_BxT, counts)


def _window_batches(
    stream: Stream,
    reads_documents: bool,
    context_length: int,
    stride: int,
    batch_size: int,
    ranks: Ranks,
) -> Iterator[_Batch]:
    windows = _windows(len(stream.tokens) - 1, context_length, stride, batch_size * ranks.world_size)
    for all_starts_B, length, n_scored in windows:
        starts_B, counts = _share_of(all_starts_B, ranks)
        inputs_BxT, targets_BxT = gather_targets(stream, starts_B, length)
        inputs = [inputs_BxT]
        if reads_documents:
            inputs.append(document_ids(stream.documents, starts_B, length))
        yield _Batch(inputs, targets_BxT[:, -n_scored:], counts)


def _share_of(rows_B: np.ndarray, ranks: Ranks) -> tuple[np.ndarray, bool]:
    """Return this rank's share of the rows, and whether it counts.

    A rank without a share gets a row that does not count, since a sharded model must run on all ranks.
    """
    share_B = rows_B[ranks.rank :: ranks.world_size]
    return (share_B, True) if len(share_B) else (rows_B[:1], False)


def summed_loss(
    model: nn.Module, inputs: Sequence[torch.Tensor], targets_BxS: torch.Tensor, number_format: NumberFormat
) -> float:
    """Return the summed loss in nats over the targets of the last S positions."""
    n_scored = targets_BxS.shape[1]
    if isinstance(model, ScoresTargets):
        inputs_BxT = inputs[0]
        targets_BxT = F.pad(targets_BxS, (inputs_BxT.shape[1] - n_scored, 0), value=IGNORE_INDEX)
        log_probabilities_BxT = model.target_log_probabilities(inputs_BxT, targets_BxT.clamp(min=0))
        return -log_probabilities_BxT[targets_BxT != IGNORE_INDEX].sum().item()
    with number_format.autocast():
        logits_BxTxV = model(*inputs)
    return next_token_loss(logits_BxTxV[:, -n_scored:], targets_BxS, reduction="sum").item()


def _windows(
    n_targets: int, context_length: int, stride: int, batch_size: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield the starts of a batch of windows, their number of inputs, and how many targets at their end are scored."""
    assert 1 <= stride <= context_length, f"stride {stride}, context_length {context_length}"
    # The first window has no earlier context: all of its targets are scored.
    first = min(context_length, n_targets)
    yield np.array([0]), first, first
    ends = np.arange(first + stride, n_targets + 1, stride)
    for start in range(0, len(ends), batch_size):
        batch = ends[start : start + batch_size]
        yield batch - context_length, context_length, stride
    done = int(ends[-1]) if len(ends) else first
    if done < n_targets:
        yield np.array([n_targets - context_length]), context_length, n_targets - done
