"""Operations with hand-written backward passes, which take fewer kernels on a CPU than those that autograd derives.

Each function has a plain formula of the same name. It is used on a GPU, which has its own fused kernels, under
torch.compile, which fuses by itself, and where a gradient is differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from nanolm.model.positions import rotate


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    return relu_squared_formula(x) if _prefers_formulas(x) else _ReluSquared.apply(x)[0]


def relu_squared_formula(x: torch.Tensor) -> torch.Tensor:
    # A product stays in half precision under CUDA autocast, which computes powers in fp32.
    rectified = F.relu(x)
    return rectified * rectified


class _ReluSquared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rectified = F.relu(x)
        ctx.save_for_backward(rectified)
        ctx.set_materialize_grads(False)
        # As an output, so that the saved tensor is part of the graph of a second derivative.
        return rectified * rectified, rectified

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, rectified_grad: torch.Tensor | None) -> torch.Tensor | None:
        (rectified,) = ctx.saved_tensors
        # 2 rectified grad in one pass: addcmul scales the product.
        found = None if grad is None else torch.addcmul(grad.new_zeros(()), rectified, grad, value=2)
        if rectified_grad is None:
            return found
        masked = rectified_grad * (rectified > 0)
        return masked if found is None else found + masked


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """swish(a) * b for the two halves a, b of the last dimension (Shazeer 2020)."""
    return swiglu_formula(x) if _prefers_formulas(x) else _SwiGLU.apply(x)


def swiglu_formula(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        swish = F.silu(a)
        ctx.save_for_backward(x, swish)
        return swish * b

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        x, swish = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiate(swiglu_formula, (x,), (grad,))[0]
        # Both halves are written where they belong, and need not be joined.
        x_grad = torch.empty_like(x)
        (a, b), (a_grad, b_grad) = x.chunk(2, dim=-1), x_grad.chunk(2, dim=-1)
        torch.mul(grad, swish, out=b_grad)
        torch.ops.aten.silu_backward.grad_input(grad * b, a, grad_input=a_grad)
        return x_grad


def rms_norm(x_C: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    """Scale the vectors along the last dimension to unit mean square (Zhang and Sennrich 2019).

    Args:
        eps: added to the mean square; None is the machine epsilon of fp32, or of fp64 for fp64.
    """
    return rms_norm_formula(x_C, eps) if _prefers_formulas(x_C) else _RMSNorm.apply(x_C, eps)


def rms_norm_formula(x_C: torch.Tensor, eps: float | None = None) -> torch.Tensor:
    return F.rms_norm(x_C, x_C.shape[-1:], eps=eps)


def _norm_in_own_dtype(x_C: torch.Tensor, eps: float | None) -> torch.Tensor:
    """Normalize in the dtype of the vectors, of which CUDA's autocast would keep copies in fp32.

    The kernel computes in fp32 all the same.
    """
    if not torch.is_autocast_enabled(x_C.device.type):
        return rms_norm_formula(x_C, eps)
    with torch.autocast(x_C.device.type, enabled=False):
        return rms_norm_formula(x_C, torch.finfo(torch.float32).eps if eps is None else eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_C: torch.Tensor, eps: float | None) -> torch.Tensor:
        scale_1 = _inverse_rms(x_C, eps)
        y_C = (x_C * scale_1).to(x_C.dtype)
        ctx.eps = eps
        ctx.save_for_backward(x_C, y_C, scale_1)
        return y_C

    @staticmethod
    def backward(ctx: Any, grad_C: torch.Tensor) -> tuple[torch.Tensor, None]:
        x_C, y_C, scale_1 = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiate(lambda x: rms_norm_formula(x, ctx.eps), (x_C,), (grad_C,))[0], None
        return _rms_norm_backward(grad_C, y_C, scale_1), None


def _inverse_rms(x_C: torch.Tensor, eps: float | None) -> torch.Tensor:
    """Return 1 / sqrt(mean square + eps) along the last dimension, which is kept, in fp32 or fp64."""
    dtype = torch.promote_types(x_C.dtype, torch.float32)
    norm_1 = torch.linalg.vector_norm(x_C, dim=-1, keepdim=True, dtype=dtype)
    eps_0 = norm_1.new_full((), torch.finfo(dtype).eps if eps is None else eps)
    return torch.addcmul(eps_0, norm_1, norm_1, value=1 / x_C.size(-1)).rsqrt_()


def _rms_norm_backward(grad_C: torch.Tensor, y_C: torch.Tensor, scale_1: torch.Tensor) -> torch.Tensor:
    """Return scale (grad - y mean(y grad)), of the normalized y: along y itself the input has almost no effect."""
    mean_1 = (y_C * grad_C).sum(dim=-1, keepdim=True, dtype=scale_1.dtype)
    return torch.addcmul(grad_C.to(scale_1.dtype), y_C, mean_1, value=-1 / y_C.size(-1)).mul_(scale_1).to(y_C.dtype)


def causal_convolution(x_BxTxC: torch.Tensor, weight_KxC: torch.Tensor) -> torch.Tensor:
    """x_t + w_1 x_(t-1) + ... + w_K x_(t-K) in every channel, with zeros before the first position."""
    if _prefers_formulas(x_BxTxC):
        return causal_convolution_formula(x_BxTxC, weight_KxC)
    return _CausalConvolution.apply(x_BxTxC, weight_KxC)


def causal_convolution_formula(
    x_BxTxC: torch.Tensor, weight_KxC: torch.Tensor, documents_BxT: torch.Tensor | None = None
) -> torch.Tensor:
    """As `causal_convolution`; given the document numbers, no token of another document is read."""
    reach, length = len(weight_KxC), x_BxTxC.size(1)
    padded = F.pad(x_BxTxC, (0, 0, reach, 0))
    y_BxTxC = x_BxTxC
    for distance, weight_C in enumerate(weight_KxC, start=1):
        term_BxTxC = padded[:, reach - distance : reach - distance + length] * weight_C
        if documents_BxT is not None:
            before_BxT = F.pad(documents_BxT, (reach, 0), value=-1)[:, reach - distance : reach - distance + length]
            term_BxTxC = term_BxTxC * (before_BxT == documents_BxT)[..., None]
        y_BxTxC = y_BxTxC + term_BxTxC
    return y_BxTxC


class _CausalConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BxTxC: torch.Tensor, weight_KxC: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_BxTxC, weight_KxC)
        y_BxTxC = x_BxTxC.clone()
        for distance, weight_C in _taps(weight_KxC.to(x_BxTxC.dtype), x_BxTxC.size(1)):
            y_BxTxC[:, distance:].addcmul_(x_BxTxC[:, :-distance], weight_C)
        return y_BxTxC

    @staticmethod
    def backward(ctx: Any, grad_BxTxC: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_BxTxC, weight_KxC = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiate(causal_convolution_formula, (x_BxTxC, weight_KxC), (grad_BxTxC,))
        x_grad_BxTxC = grad_BxTxC.clone()
        weight_grad_KxC = torch.zeros_like(weight_KxC)
        for distance, weight_C in _taps(weight_KxC.to(x_BxTxC.dtype), x_BxTxC.size(1)):
            later_BxTxC, earlier_BxTxC = grad_BxTxC[:, distance:], x_BxTxC[:, :-distance]
            x_grad_BxTxC[:, :-distance].addcmul_(later_BxTxC, weight_C)
            torch.sum(later_BxTxC * earlier_BxTxC, dim=(0, 1), out=weight_grad_KxC[distance - 1])
        return x_grad_BxTxC, weight_grad_KxC


def _taps(weight_KxC: torch.Tensor, length: int) -> list[tuple[int, torch.Tensor]]:
    """Return the distances that are shorter than a text, each with its weights."""
    return list(enumerate(weight_KxC[: length - 1], start=1))


class Heads(NamedTuple):
    """How the output of attention's stacked matrices divides into queries, keys and values.

    Attributes:
        n_queries: heads of queries.
        n_keys: heads of keys, and of values.
        key_width: of each query and key.
        has_norm: whether queries and keys are normalized to unit mean square.
        eps: as in `rms_norm`.
    """

    n_queries: int
    n_keys: int
    key_width: int
    has_norm: bool
    eps: float | None = None


def split_heads(
    projected_BxTxP: torch.Tensor, heads: Heads, rotary_2xTxR: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split the output of attention's stacked matrices into heads; normalize and rotate queries and keys.

    Args:
        projected_BxTxP: queries, keys and values, one after another in the last dimension.
        rotary_2xTxR: cosines and sines of rotary position embedding; None: no rotation.

    Returns:
        q_BxHxTxD, k_BxGxTxD and v_BxGxTxE.
    """
    if rotary_2xTxR is None or _prefers_formulas(projected_BxTxP):
        return split_heads_formula(projected_BxTxP, heads, rotary_2xTxR)
    return _SplitHeads.apply(projected_BxTxP, heads, rotary_2xTxR)


def split_heads_formula(
    projected_BxTxP: torch.Tensor, heads: Heads, rotary_2xTxR: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n_vectors = heads.n_queries + heads.n_keys
    key_rows = heads.n_keys * heads.key_width
    counts = (heads.n_queries * heads.key_width, key_rows, projected_BxTxP.size(-1) - n_vectors * heads.key_width)
    q_BxHxTxD, k_BxGxTxD, v_BxGxTxE = (
        part.unflatten(-1, (n_heads, -1)).transpose(1, 2)
        for part, n_heads in zip(
            projected_BxTxP.split(counts, dim=-1), (heads.n_queries, heads.n_keys, heads.n_keys), strict=True
        )
    )
    if heads.has_norm:
        q_BxHxTxD, k_BxGxTxD = (
            _norm_in_own_dtype(q_BxHxTxD, heads.eps),
            _norm_in_own_dtype(k_BxGxTxD, heads.eps),
        )
    if rotary_2xTxR is not None:
        q_BxHxTxD, k_BxGxTxD = rotate(q_BxHxTxD, rotary_2xTxR), rotate(k_BxGxTxD, rotary_2xTxR)
    return q_BxHxTxD, k_BxGxTxD, v_BxGxTxE


class _SplitHeads(torch.autograd.Function):
    """Treats queries and keys as vectors of one tensor BxTxNxD, N = H + G, in the order of the linear layer's output.

    The norm commutes with the rotation, which preserves dot products. So the backward pass of the norm may come first,
    and needs the rotated vectors only.
    """

    @staticmethod
    def forward(
        ctx: Any, projected_BxTxP: torch.Tensor, heads: Heads, rotary_2xTxR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x_BxTxNxD, v_BxTxGxE = _vectors(projected_BxTxP, heads)
        y_BxTxNxD = torch.empty_like(x_BxTxNxD, memory_format=torch.contiguous_format)
        _rotate_into(y_BxTxNxD, x_BxTxNxD, *rotary_2xTxR)
        scale_BxTxNx1 = _inverse_rms(x_BxTxNxD, heads.eps) if heads.has_norm else None
        if scale_BxTxNx1 is not None:
            y_BxTxNxD.mul_(scale_BxTxNx1)
        ctx.heads, ctx.rotary_2xTxR = heads, rotary_2xTxR
        ctx.save_for_backward(projected_BxTxP, y_BxTxNxD, scale_BxTxNx1)
        q_BxTxHxD, k_BxTxGxD = y_BxTxNxD.split(heads[:2], dim=2)
        return q_BxTxHxD.transpose(1, 2), k_BxTxGxD.transpose(1, 2), v_BxTxGxE.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        projected_BxTxP, y_BxTxNxD, scale_BxTxNx1 = ctx.saved_tensors
        heads, rotary_2xTxR = ctx.heads, ctx.rotary_2xTxR
        if torch.is_grad_enabled():

            def formula(projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
                return split_heads_formula(projected, heads, rotary_2xTxR)

            return *_differentiate(formula, (projected_BxTxP,), grads), None, None
        grad_BxTxP = torch.empty_like(projected_BxTxP)
        x_grad_BxTxNxD, v_grad_BxTxGxE = _vectors(grad_BxTxP, heads)
        q_grad_BxTxHxD, k_grad_BxTxGxD, v_BxTxGxE = (grad.transpose(1, 2) for grad in grads)
        v_grad_BxTxGxE.copy_(v_BxTxGxE)
        y_grad_BxTxNxD = torch.cat((q_grad_BxTxHxD, k_grad_BxTxGxD), dim=2)
        if scale_BxTxNx1 is not None:
            y_grad_BxTxNxD = _rms_norm_backward(y_grad_BxTxNxD, y_BxTxNxD, scale_BxTxNx1)
        cos_TxR, sin_TxR = rotary_2xTxR
        _rotate_into(x_grad_BxTxNxD, y_grad_BxTxNxD, cos_TxR, -sin_TxR)
        return grad_BxTxP, None, None


def _vectors(projected_BxTxP: torch.Tensor, heads: Heads) -> tuple[torch.Tensor, torch.Tensor]:
    """Return views: the vectors of queries and keys, BxTxNxD, and the values, BxTxGxE."""
    n_vectors = heads.n_queries + heads.n_keys
    n_rows = n_vectors * heads.key_width
    keyed, values = projected_BxTxP.split((n_rows, projected_BxTxP.size(-1) - n_rows), dim=-1)
    return keyed.unflatten(-1, (n_vectors, -1)), values.unflatten(-1, (heads.n_keys, -1))


def _rotate_into(
    out_BxTxNxD: torch.Tensor, x_BxTxNxD: torch.Tensor, cos_TxR: torch.Tensor, sin_TxR: torch.Tensor
) -> None:
    """Write `rotate` of the vectors into a tensor, without temporary ones."""
    a, b = x_BxTxNxD.chunk(2, dim=-1)
    out_a, out_b = out_BxTxNxD.chunk(2, dim=-1)
    torch.mul(x_BxTxNxD, torch.cat([cos_TxR, cos_TxR], dim=-1)[:, None], out=out_BxTxNxD)
    sin_Tx1xR = sin_TxR[:, None]
    out_a.addcmul_(b, sin_Tx1xR, value=-1)
    out_b.addcmul_(a, sin_Tx1xR)


def _prefers_formulas(x: torch.Tensor) -> bool:
    return x.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _differentiate(
    formula: Callable[..., Any], inputs: tuple[torch.Tensor, ...], grads: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of a formula such that they can be differentiated again."""
    with torch.enable_grad():
        return torch.autograd.grad(formula(*inputs), inputs, grads, create_graph=True)
