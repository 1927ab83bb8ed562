"""The cross-entropy of next-token prediction, from logits or from the inputs of the head."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nanolm.data.batches import IGNORE_INDEX
from nanolm.model.loss_chunks import chunk_rows, is_large

Reduction = Literal["mean", "sum"]


def next_token_loss(
    logits_BxTxV: torch.Tensor, targets_BxT: torch.Tensor, reduction: Reduction = "mean"
) -> torch.Tensor:
    """Cross-entropy in nats, computed in fp32 for logits of any dtype; targets of IGNORE_INDEX are not scored."""
    logits_BTxV, targets_BT = logits_BxTxV.flatten(0, 1).float(), targets_BxT.flatten()
    return F.cross_entropy(logits_BTxV, targets_BT, reduction=reduction, ignore_index=IGNORE_INDEX)


def cap_logits(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Bound logits by softcap * tanh(logits / softcap), in fp32; None leaves them unchanged."""
    # In half precision the rounding of tanh would bias the loss.
    return logits if softcap is None else softcap * torch.tanh(logits.float() / softcap)


def last_positions(x_BxTxC: torch.Tensor, n_positions: int) -> torch.Tensor:
    """Return the last positions of a tensor; the tensor itself if these are all, since slices copy their gradient."""
    return x_BxTxC if x_BxTxC.size(1) == n_positions else x_BxTxC[:, -n_positions:]


def is_chunked(n_positions: int, weight_VxC: torch.Tensor) -> bool:
    """Return whether to use `chunked_loss`: in eager mode, if the logits are large.

    Compiled code computes all logits, in the dtype of autocast: Inductor fuses the cast to fp32 and the cross-entropy.
    """
    return is_large(n_positions, *weight_VxC.shape) and not torch.compiler.is_compiling()


def chunked_loss(
    x_BxTxC: torch.Tensor,
    weight_VxC: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_BxT: torch.Tensor,
    reduction: Reduction = "mean",
    softcap: float | None = None,
) -> torch.Tensor:
    """Return the `next_token_loss` of a linear layer's outputs without a tensor of all logits.

    The logits of some positions at a time are turned into gradients during the forward pass, which leaves those of the
    inputs and of the weights for the backward pass. There are as many matrix products as with all logits. Unlike
    `torch.nn.functional.linear_cross_entropy`, it supports a softcap, sums the loss and the gradient of the weights in
    fp32 under autocast, and takes as long on a CPU as with all logits.

    Args:
        softcap: as in `cap_logits`.
    """
    device_type = x_BxTxC.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x_BxTxC.dtype
    x_NxC, targets_N = x_BxTxC.flatten(0, 1).to(dtype), targets_BxT.flatten()
    if not torch.is_grad_enabled():
        weight_VxC, bias_V = weight_VxC.detach(), None if bias_V is None else bias_V.detach()
    with torch.autocast(device_type, enabled=False):
        loss: torch.Tensor = _ChunkedLoss.apply(x_NxC, weight_VxC, bias_V, targets_N, softcap)
    # As F.cross_entropy, NaN if no target is scored.
    return loss / (targets_N != IGNORE_INDEX).sum() if reduction == "mean" else loss


class _ChunkedLoss(torch.autograd.Function):
    """The summed loss over N positions; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NxC: torch.Tensor,
        weight_VxC: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        softcap: float | None,
    ) -> torch.Tensor:
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        weight, bias = weight_VxC.to(x_NxC.dtype), None if bias_V is None else bias_V.to(x_NxC.dtype)
        wide = torch.promote_types(x_NxC.dtype, torch.float32)
        total = x_NxC.new_zeros((), dtype=wide)
        x_grad = torch.empty_like(x_NxC) if needs_x else None
        weight_grad = torch.zeros_like(weight_VxC, dtype=wide) if needs_weight else None
        bias_grad = torch.zeros_like(bias_V, dtype=wide) if needs_bias and bias_V is not None else None
        size = chunk_rows(len(weight))
        for start in range(0, len(x_NxC), size):
            x, targets = x_NxC[start : start + size], targets_N[start : start + size]
            logits = cap_logits(F.linear(x, weight, bias).to(wide), softcap)
            log_probabilities = logits.log_softmax(dim=-1)
            is_scored, at = (targets != IGNORE_INDEX)[:, None], targets.clamp(min=0)[:, None]
            total -= (log_probabilities.gather(1, at) * is_scored).sum()
            if not any(ctx.needs_input_grad):
                continue
            grad = log_probabilities.exp_()
            grad.scatter_(1, at, grad.gather(1, at) - 1).mul_(is_scored)
            if softcap is not None:
                # The derivative of tanh is 1 - tanh^2.
                grad.mul_(1 - (logits / softcap).square_())
            grad = grad.to(x.dtype)
            del logits, log_probabilities
            if x_grad is not None:
                torch.mm(grad, weight, out=x_grad[start : start + size])
            if weight_grad is not None and weight_grad.dtype is grad.dtype:
                weight_grad.addmm_(grad.t(), x)
            elif weight_grad is not None:
                weight_grad += grad.t() @ x
            if bias_grad is not None:
                bias_grad += grad.sum(dim=0)
        ctx.gradients, ctx.dtype = (x_grad, weight_grad, bias_grad), weight_VxC.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # Changed in place: a copy of the gradient of the weights would be live at the peak.
        (x_grad, weight_grad, bias_grad), ctx.gradients = ctx.gradients, None
        # A loss scale of fp16 exceeds the range of the inputs' dtype.
        x_grad = None if x_grad is None else (x_grad.float() * grad).to(x_grad.dtype)
        others = (None if saved is None else saved.mul_(grad).to(ctx.dtype) for saved in (weight_grad, bias_grad))
        return x_grad, *others, None, None
