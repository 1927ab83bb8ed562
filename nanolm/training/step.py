"""One update of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from nanolm.data.batches import IGNORE_INDEX
from nanolm.training.distributed.parallel import gradient_sync, local_shards, total_norm
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.precision import NumberFormat

# inputs_BxT, and documents_BxT where the model reads them, to logits_BxTxV.
Forward = Callable[..., torch.Tensor]


def next_token_loss(logits_BxTxV: torch.Tensor, targets_BxT: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats, computed in fp32 for logits of any dtype; targets of IGNORE_INDEX are not scored."""
    logits_NxV, targets_N = logits_BxTxV.flatten(0, 1).float(), targets_BxT.flatten()
    return F.cross_entropy(logits_NxV, targets_N, reduction=reduction, ignore_index=IGNORE_INDEX)


def update(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    parts: Iterable[tuple[torch.Tensor, ...]],
    number_format: NumberFormat,
    clip_norm: float | None,
    clip_value: float | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> tuple[float, float]:
    """Gathers the gradient over the parts of a batch, clips it, and moves the weights.

    A loss or gradient that is not finite leaves the weights as they were. (Under fp16 an overflowing gradient is part
    of finding the loss scale: that update is skipped and the scale is lowered.)

    Args:
        parts: (inputs_BxT, targets_BxT), or (inputs_BxT, targets_BxT, documents_BxT) for a model that reads which
            document each input is of; each counts by the targets that are scored in it.
        clip_norm: the gradient is scaled down to this 2-norm; None leaves it.
        clip_value: each number of the gradient is cut to between this and its negative; None leaves it.
        ranks: those that make this update together, each with its own parts of the batch.

    Returns:
        The mean loss in nats over all targets that are scored, and the norm of the gradient before clipping; of all
        ranks, and the same on each.
    """
    parts = list(parts)
    scaler = number_format.scaler
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    # A batch in one part is its own mean; counting would wait for the device.
    is_one_part = len(parts) == ranks.world_size == 1
    n_scored = 1 if is_one_part else ranks.sum(sum(int((targets != IGNORE_INDEX).sum()) for _, targets, *_ in parts))
    for number, (inputs_BxT, targets_BxT, *documents) in enumerate(parts, start=1):
        with gradient_sync(forward, is_last=number == len(parts)):
            with number_format.autocast():
                # Without a name, so that the logits are freed as soon as the backward pass has used them.
                loss = next_token_loss(forward(inputs_BxT, *documents), targets_BxT, "mean" if is_one_part else "sum")
            # Gradients become their mean over the ranks, and the loss is to be their sum.
            share = loss if is_one_part else loss * (ranks.world_size / max(n_scored, 1))
            (share if scaler is None else scaler.scale(share)).backward()
        total += share.item() / ranks.world_size
    total = ranks.sum(total)
    if scaler is not None:
        scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = total_norm(gradients, ranks)
    if math.isfinite(norm):
        _clip(local_shards(gradients), norm, clip_norm, clip_value)
    if scaler is not None:
        if math.isfinite(total):
            scaler.step(optimizer)
            scaler.update()
    elif math.isfinite(total) and math.isfinite(norm):
        optimizer.step()
    return total, norm


def _clip(gradients: list[torch.Tensor], norm: float, clip_norm: float | None, clip_value: float | None) -> None:
    if clip_norm is not None and norm > clip_norm:
        torch._foreach_mul_(gradients, clip_norm / norm)
    if clip_value is not None:
        torch._foreach_clamp_max_(gradients, clip_value)
        torch._foreach_clamp_min_(gradients, -clip_value)
