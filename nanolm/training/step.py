"""One update of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from nanolm.data.batches import IGNORED
from nanolm.training.precision import NumberFormat

# inputs_BxT, and documents_BxT where the model reads them, to logits_BxTxV.
Forward = Callable[..., torch.Tensor]


def next_token_loss(logits_BxTxV: torch.Tensor, targets_BxT: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy in nats, computed in fp32 whatever the logits are in; targets that are IGNORED are not scored."""
    logits_NxV, targets_N = logits_BxTxV.flatten(0, 1).float(), targets_BxT.flatten()
    return F.cross_entropy(logits_NxV, targets_N, reduction=reduction, ignore_index=IGNORED)


def update(
    forward: Forward,
    optimizer: torch.optim.Optimizer,
    parts: Iterable[tuple[torch.Tensor, ...]],
    number_format: NumberFormat,
    clip_norm: float | None,
    clip_value: float | None = None,
) -> tuple[float, float]:
    """Gathers the gradient over the parts of a batch, clips it, and moves the weights.

    A loss or gradient that is not finite leaves the weights as they were. (Under fp16 an overflowing gradient is part
    of finding the loss scale: that update is skipped and the scale is lowered.)

    Args:
        parts: (inputs_BxT, targets_BxT), or (inputs_BxT, targets_BxT, documents_BxT) for a model that reads which
            document each input is of; each counts by the targets that are scored in it.
        clip_norm: the gradient is scaled down to this 2-norm; None leaves it.
        clip_value: each number of the gradient is cut to between this and its negative; None leaves it.

    Returns:
        The mean loss in nats over all targets that are scored, and the norm of the gradient before clipping.
    """
    parts = list(parts)
    scaler = number_format.scaler
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    # A single part is its own mean; counting would wait for the device.
    scored = [int((targets != IGNORED).sum()) for _, targets, *_ in parts] if len(parts) > 1 else [1]
    for (inputs_BxT, targets_BxT, *documents), n_scored in zip(parts, scored, strict=True):
        if n_scored == 0:
            continue
        with number_format.autocast():
            loss = next_token_loss(forward(inputs_BxT, *documents), targets_BxT)
        share = loss / (sum(scored) / n_scored) if len(parts) > 1 else loss
        (share if scaler is None else scaler.scale(share)).backward()
        total += share.item()
    if scaler is not None:
        scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if math.isfinite(norm):
        _clip(gradients, norm, clip_norm, clip_value)
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
