"""The exact loss over a split: every token is scored once, in order; of a dataset with prompts, every response."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nanolm.data.batches import IGNORE_INDEX, document_ids, gather_rows, gather_targets
from nanolm.data.tokens.stream import Rows, Stream, Tokens
from nanolm.model.loss import last_positions
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.precision import NumberFormat, widest_dtype
from nanolm.training.step import LossFn, loss_function

# Tokens of one forward pass. On a CPU the values of larger batches leave its cache.
CPU_TOKENS, GPU_TOKENS = 2**11, 2**15
# Logits of one forward pass, unless the model computes its loss in chunks: in fp32 128 MiB and 1 GiB.
CPU_LOGITS, GPU_LOGITS = 2**25, 2**28


@runtime_checkable
class ScoresTargets(Protocol):
    """A model that computes the probabilities of given targets without those of all other tokens."""

    def target_log_probabilities(self, tokens_BxT: torch.Tensor, targets_BxT: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of each target, BxT."""


class _Batch(NamedTuple):
    """Inputs of the model, and the targets of their last S positions."""

    inputs_BxT: np.ndarray  # noqa: N815  the name shows the shape
    targets_BxS: np.ndarray  # noqa: N815
    documents_BxT: np.ndarray | None = None  # noqa: N815


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
    compiled_loss: LossFn | None = None,
) -> float:
    """Return the mean loss over a split in nats per token, without dropout.

    A split with rows is scored row by row: each row sees its own inputs only, and padding is not scored. Any other
    split is scored in windows that advance by `stride` tokens, each with up to context_length - stride tokens of
    earlier context. stride = context_length gives windows as in training and is fastest; a smaller stride gives every
    token more context at context_length / stride times the cost. Every token but the first is scored. The first token
    of a document is scored as the next token of the document before, also under a document mask.

    With rows, or stride = context_length, all batches have one shape. The host waits for the device once, at the end.

    Args:
        model: evaluated in eval mode, and returned to its previous mode.
        context_length: maximum number of inputs.
        stride: from 1 to context_length; ignored for rows.
        vocab_size: number of logits per position, which limits the batch size.
        reads_documents: whether the model takes the document index of each input.
        ranks: each scores its share of the split; all return the same loss.
        compiled_loss: `loss_function(model)`, compiled; None: not compiled.
    """
    is_chunked = compiled_loss is None and getattr(model, "has_chunked_loss", False)
    batch_size = _batch_size(context_length, vocab_size, device, is_chunked)
    loss_fn = compiled_loss or loss_function(model)
    if stream.rows is not None:
        batches = _row_batches(stream.tokens, stream.rows, batch_size, ranks)
    else:
        batches = _window_batches(stream, reads_documents, context_length, stride, batch_size, ranks)
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=widest_dtype(device), device=device)
    for batch in batches:
        tensors = (torch.from_numpy(array).to(device) for array in batch if array is not None)
        total += summed_loss(model, loss_fn, number_format, *tensors)
    model.train(was_training)
    return ranks.sum(total.item()) / stream.scored_tokens


@torch.no_grad()
def token_losses(
    model: nn.Module,
    stream: Stream,
    n_tokens: int,
    *,
    context_length: int,
    vocab_size: int,
    device: torch.device,
    reads_documents: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first scored tokens of a split, and the loss of each in nats, in fp32 and without dropout.

    Windows advance by half of the context, so that no token has less context than that, except at the beginning.

    Args:
        model: in eval mode.
        n_tokens: the largest number of tokens.
        reads_documents: whether the model takes the document index of each input.

    Returns:
        tokens_N, int64, and losses_N, fp32.
    """
    stride = max(1, context_length // 2)
    size = min(_batch_size(context_length, vocab_size, device, is_chunked=False), -(-n_tokens // stride))
    if stream.rows is not None:
        batches = _row_batches(stream.tokens, stream.rows, size, SINGLE_PROCESS)
    else:
        batches = _window_batches(stream, reads_documents, context_length, stride, size, SINGLE_PROCESS)
    tokens, losses, n_found = [], [], 0
    for batch in batches:
        targets_BxS = torch.from_numpy(batch.targets_BxS).to(device)
        inputs = [
            torch.from_numpy(array).to(device) for array in (batch.inputs_BxT, batch.documents_BxT) if array is not None
        ]
        if isinstance(model, ScoresTargets):
            targets_BxT = F.pad(targets_BxS, (inputs[0].shape[1] - targets_BxS.shape[1], 0), value=IGNORE_INDEX)
            found_BxT = -model.target_log_probabilities(inputs[0], targets_BxT.clamp(min=0))
        else:
            logits_BxSxV, targets_BxT = last_positions(model(*inputs), targets_BxS.shape[1]).float(), targets_BxS
            # cross_entropy takes the classes as the second dimension.
            found_BxT = F.cross_entropy(logits_BxSxV.mT, targets_BxT, reduction="none", ignore_index=IGNORE_INDEX)
        is_scored_BxT = targets_BxT != IGNORE_INDEX
        tokens.append(targets_BxT[is_scored_BxT].cpu().numpy())
        losses.append(found_BxT[is_scored_BxT].float().cpu().numpy())
        n_found += len(tokens[-1])
        if n_found >= n_tokens:
            break
    return np.concatenate(tokens)[:n_tokens], np.concatenate(losses)[:n_tokens]


def _batch_size(context_length: int, vocab_size: int, device: torch.device, is_chunked: bool) -> int:
    """Return the number of rows of one forward pass.

    Args:
        is_chunked: whether there are never logits of all rows.
    """
    tokens, logits = (CPU_TOKENS, CPU_LOGITS) if device.type == "cpu" else (GPU_TOKENS, GPU_LOGITS)
    return max(1, (tokens if is_chunked else min(tokens, logits // vocab_size)) // context_length)


def _row_batches(tokens: Tokens, rows: Rows, batch_size: int, ranks: Ranks) -> Iterator[_Batch]:
    for rows_B, counts_B in _shares(len(rows), batch_size, ranks):
        inputs_BxT, targets_BxT = gather_rows(tokens, rows, rows_B)
        targets_BxT[~counts_B] = IGNORE_INDEX
        yield _Batch(inputs_BxT, targets_BxT)


def _window_batches(
    stream: Stream,
    reads_documents: bool,
    context_length: int,
    stride: int,
    batch_size: int,
    ranks: Ranks,
) -> Iterator[_Batch]:
    assert 1 <= stride <= context_length, f"stride {stride}, context_length {context_length}"
    n_targets = len(stream.tokens) - 1
    length = min(context_length, n_targets)
    # The first window has no earlier context: all of its targets are scored.
    ends = np.minimum(np.arange(length, n_targets + stride, stride), n_targets)
    scored = np.diff(ends, prepend=0)
    # Windows of which as many targets are scored share batches.
    is_alike = stride == context_length
    for first, last, n_scored in [(0, len(ends), length)] if is_alike else [(0, 1, length), (1, len(ends), stride)]:
        for windows_B, counts_B in _shares(last - first, batch_size, ranks):
            windows_B = windows_B + first
            starts_B = ends[windows_B] - length
            inputs_BxT, targets_BxT = gather_targets(stream, starts_B, length)
            is_scored_BxS = np.arange(n_scored) >= n_scored - (scored[windows_B] * counts_B)[:, None]
            targets_BxS = np.where(is_scored_BxS, targets_BxT[:, -n_scored:], IGNORE_INDEX)
            documents_BxT = document_ids(stream.documents, starts_B, length) if reads_documents else None
            yield _Batch(inputs_BxT, targets_BxS, documents_BxT)


def _shares(n_items: int, batch_size: int, ranks: Ranks) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Divide items into batches of one size, on every rank as many, since a sharded model must run on all of them.

    Yields:
        The items of this rank in a batch, and whether each counts: the last batch is filled up with the last item.
    """
    n_batches = -(-n_items // (batch_size * ranks.world_size))
    size = -(-n_items // max(1, n_batches * ranks.world_size))
    for number in range(n_batches):
        items_B = (number * size + np.arange(size)) * ranks.world_size + ranks.rank
        yield np.minimum(items_B, n_items - 1), items_B < n_items


def summed_loss(
    model: nn.Module,
    loss_fn: LossFn,
    number_format: NumberFormat,
    inputs_BxT: torch.Tensor,
    targets_BxS: torch.Tensor,
    documents_BxT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the summed loss in nats over the targets of the last S positions, as a 0-d tensor.

    Args:
        loss_fn: of the model, or its compiled form.
    """
    if isinstance(model, ScoresTargets):
        targets_BxT = F.pad(targets_BxS, (inputs_BxT.shape[1] - targets_BxS.shape[1], 0), value=IGNORE_INDEX)
        log_probabilities_BxT = model.target_log_probabilities(inputs_BxT, targets_BxT.clamp(min=0))
        return -log_probabilities_BxT[targets_BxT != IGNORE_INDEX].sum()
    with number_format.autocast():
        return loss_fn(model, inputs_BxT, targets_BxS, documents_BxT, "sum")
