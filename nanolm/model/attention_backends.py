"""Attention backends: implementations of the same attention that differ in speed and memory.

A backend is a function of an `AttentionContext`. It returns an `AttentionFn`, which all layers with the same mask call
on its own queries, keys and values, so that the mask is prepared once per forward pass.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from nanolm.config.mask import (
    BandedCausalConfig,
    BandedConfig,
    BlockLocalConfig,
    CausalConfig,
    MaskConfig,
    NoMaskConfig,
)
from nanolm.config.trainer import AttentionBackend
from nanolm.model.masks import same_document
from nanolm.registry import MASKS

# (queries_BxHxTxD, keys_BxHxSxD, values_BxHxSxE, dropout of the attention weights) -> BxHxTxE
AttentionFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]

# Smaller blocks of queries make matrix products that are too small for a CPU.
MIN_BLOCK_SIZE = 32


@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """The positions that one forward pass attends from and to, with everything that affects the scores.

    Attributes:
        mask: settings of the mask.
        read_table: returns mask_TxT, the mask over the whole context, on `device`; None for a causal mask.
        start: position of the first query. Keys begin at position 0.
        length: number of keys; the last query is at position length - 1.
        slopes_H: ALiBi slopes; None without ALiBi.
        documents_BxS: document number of each key, for masks within documents; None otherwise.
        device: device of all tensors.
    """

    mask: MaskConfig
    read_table: Callable[[], torch.Tensor | None]
    start: int
    length: int
    slopes_H: torch.Tensor | None  # noqa: N815  shape suffix
    documents_BxS: torch.Tensor | None  # noqa: N815
    device: torch.device

    @property
    def is_plain_causal(self) -> bool:
        """Whether this is causal attention over a whole text, without documents and without ALiBi."""
        is_causal = isinstance(self.mask, CausalConfig)
        return is_causal and self.start == 0 and self.slopes_H is None and self.documents_BxS is None

    @property
    def sees_everything(self) -> bool:
        """Whether every query sees every key, and no bias is added."""
        return isinstance(self.mask, NoMaskConfig) and self.slopes_H is None and self.documents_BxS is None

    def visible(self) -> torch.Tensor:
        """Return whether each query sees each key: TxS, or Bx1xTxS if documents are separated."""
        mask_TxT = self.read_table()
        if mask_TxT is not None:
            visible_TxS = mask_TxT[self.start : self.length, : self.length]
        else:
            positions = torch.arange(self.length, device=self.device)
            visible_TxS = positions[self.start :, None] >= positions
        if self.documents_BxS is None:
            return visible_TxS
        same_BxTxS = same_document(self.documents_BxS)[:, self.start :]
        return visible_TxS & same_BxTxS[:, None]

    def alibi_bias(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor | None:
        """Return the ALiBi bias of positions that broadcast to TxS, as HxTxS; None without ALiBi."""
        if self.slopes_H is None:
            return None
        distance = (queries - keys).abs()
        return -self.slopes_H.view(-1, *[1] * distance.dim()) * distance


def dense(context: AttentionContext) -> AttentionFn:
    """Compute all scores and mask them: the reference implementation (Vaswani et al. 2017, section 3.2.1)."""
    visible, bias = _visible_and_bias(context)
    return lambda q, k, v, dropout: _masked_attention(q, k, v, visible, bias, dropout)


def sdpa(context: AttentionContext) -> AttentionFn:
    """Use torch's scaled_dot_product_attention, whose fused kernels take a causal flag or a mask tensor."""
    if context.is_plain_causal:
        return lambda q, k, v, dropout: F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if context.sees_everything:
        return lambda q, k, v, dropout: F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    visible, bias = _visible_and_bias(context)
    biases: dict[torch.dtype, torch.Tensor] = {}

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        is_autocast = torch.is_autocast_enabled(q.device.type)
        dtype = torch.get_autocast_dtype(q.device.type) if is_autocast else q.dtype
        if dtype not in biases:
            # What the kernels add to the scores: each layer would make, and keep for its backward pass, a copy.
            added = torch.zeros_like(visible, dtype=dtype) if bias is None else bias.to(dtype)
            biases[dtype] = added.masked_fill(~visible, -torch.inf)
        attn_mask = biases[dtype]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout)

    return attend


def blocked(context: AttentionContext) -> AttentionFn:
    """Compute local attention blockwise: each block of queries reads the keys of its own and the adjacent blocks.

    Time and memory grow with T x window instead of T x T (compare Beltagy et al. 2020, Longformer, section 3.2).
    """
    neighborhood = local_neighborhood(context.mask)
    assert neighborhood is not None, f"{context.mask.name} is not local"
    assert context.start == 0, "queries must begin at the first position"
    block_size, n_before, n_after = neighborhood
    length = context.length
    n_blocks = -(-length // block_size)
    padding = n_blocks * block_size - length
    queries_IxJx1 = torch.arange(n_blocks * block_size, device=context.device).view(n_blocks, block_size, 1)
    keys_Ix1xS = queries_IxJx1[:, :1] + torch.arange(
        -n_before * block_size, (1 + n_after) * block_size, device=context.device
    )
    visible = MASKS[context.mask.name](queries_IxJx1, keys_Ix1xS, context.mask)
    visible = visible & (keys_Ix1xS >= 0) & (keys_Ix1xS < length)
    if context.documents_BxS is not None:
        documents_Bx1xIxJx1 = F.pad(context.documents_BxS, (0, padding)).reshape(-1, 1, n_blocks, block_size, 1)
        near_Bx1xIxSx1 = _with_adjacent_blocks(documents_Bx1xIxJx1, n_before, n_after)
        visible = visible & (documents_Bx1xIxJx1 == near_Bx1xIxSx1.transpose(-2, -1))
    # Padding queries see every key, because softmax over no key is NaN; their outputs are cut off.
    visible = visible | (queries_IxJx1 >= length)
    bias = context.alibi_bias(queries_IxJx1, keys_Ix1xS)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        q, k, v = (
            (F.pad(x, (0, 0, 0, padding)) if padding else x).unflatten(2, (n_blocks, block_size)) for x in (q, k, v)
        )
        k, v = (_with_adjacent_blocks(x, n_before, n_after) for x in (k, v))
        return _masked_attention(q, k, v, visible, bias, dropout).flatten(2, 3)[:, :, :length]

    return attend


def flex(context: AttentionContext) -> AttentionFn:
    """Use FlexAttention (Dong et al. 2024), whose kernel is compiled for the mask and skips hidden blocks.

    It has no backward pass on a CPU, and no dropout. It supports whole texts only; `choose_backend` uses SDPA to decode
    with a cache.
    """
    assert context.start == 0, "queries must begin at the first position"
    documents_BxS, slopes_H = context.documents_BxS, context.slopes_H
    if documents_BxS is None:
        block_mask = _cached_block_mask(_MaskKey(context.mask), context.length, context.device)
    else:
        block_mask = _block_mask(context.mask, context.length, context.device, documents_BxS)

    def add_alibi_bias(
        score: torch.Tensor, batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        assert slopes_H is not None
        return score - slopes_H[head] * (query - key).abs()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
        assert not dropout, "FlexAttention has no dropout"
        variant = (documents_BxS is not None, slopes_H is not None, torch.is_grad_enabled())
        kernel = _flex_kernel(_MaskKey(context.mask), variant) if context.device.type == "cuda" else _flex_attention()
        # Under autocast QK-norm returns fp32, and the kernel requires one dtype.
        q, k = q.to(v.dtype), k.to(v.dtype)
        return kernel(q, k, v, score_mod=None if slopes_H is None else add_alibi_bias, block_mask=block_mask)

    return attend


@dataclasses.dataclass(frozen=True)
class _MaskKey:
    """A hashable wrapper of a mask's settings: equal settings have equal hashes."""

    mask: MaskConfig

    def __hash__(self) -> int:
        return hash(repr(self.mask))


@functools.lru_cache(maxsize=32)
def _cached_block_mask(key: _MaskKey, length: int, device: torch.device) -> Any:
    return _block_mask(key.mask, length, device, None)


def _block_mask(mask: MaskConfig, length: int, device: torch.device, documents_BxS: torch.Tensor | None) -> Any:
    """Build FlexAttention's BlockMask over `length` positions."""
    from torch.nn.attention.flex_attention import create_block_mask

    mask_function = MASKS[mask.name]

    def is_visible(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        visible = mask_function(query, key, mask)
        if documents_BxS is None:
            return visible
        return visible & (documents_BxS[batch, query] == documents_BxS[batch, key])

    batch_size = None if documents_BxS is None else documents_BxS.size(0)
    return create_block_mask(is_visible, B=batch_size, H=None, Q_LEN=length, KV_LEN=length, device=device)


@functools.lru_cache(maxsize=64)
def _flex_kernel(key: _MaskKey, variant: tuple[bool, ...]) -> Callable[..., Any]:
    """Compile FlexAttention for one mask and one variant (documents, ALiBi, gradients).

    A single callable would exceed torch's recompilation limit, after which the kernel runs unfused.
    """
    options: dict[str, Any] = {"dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.13
        options["isolate_recompiles"] = True
    else:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(_flex_attention(), **options)


def _flex_attention() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


def uniform(context: AttentionContext) -> AttentionFn:
    """Average the visible values with equal weights; queries and keys are ignored."""
    visible = context.visible()
    weights = visible / visible.sum(dim=-1, keepdim=True)
    return lambda q, k, v, dropout: F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v


BACKENDS: dict[AttentionBackend, Callable[[AttentionContext], AttentionFn]] = {
    AttentionBackend.dense: dense,
    AttentionBackend.sdpa: sdpa,
    AttentionBackend.blocked: blocked,
    AttentionBackend.flex: flex,
}


def local_neighborhood(mask: MaskConfig) -> tuple[int, int, int] | None:
    """Return (block size, number of blocks seen before a query's own, number after it); None for a non-local mask."""
    if isinstance(mask, BlockLocalConfig):
        return mask.block_size, 0, 0
    if isinstance(mask, BandedCausalConfig):
        return max(mask.window, MIN_BLOCK_SIZE), 1, 0
    if isinstance(mask, BandedConfig):
        return max(mask.window, MIN_BLOCK_SIZE), 1, 1
    return None


def _visible_and_bias(context: AttentionContext) -> tuple[torch.Tensor, torch.Tensor | None]:
    positions = torch.arange(context.length, device=context.device)
    return context.visible(), context.alibi_bias(positions[context.start :, None], positions)


def _masked_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    bias: torch.Tensor | None,
    dropout: float,
) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(D) + bias) v over the visible keys."""
    scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(q.size(-1)))
    if bias is not None:
        scores = scores + bias
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=-1)
    return F.dropout(weights, dropout, training=dropout > 0).to(v.dtype) @ v


def _with_adjacent_blocks(x_BxHxIxJxD: torch.Tensor, n_before: int, n_after: int) -> torch.Tensor:
    """Concatenate each block with its neighbors: BxHxIxSxD with S = (n_before + 1 + n_after) J, zero-padded."""
    if not n_before and not n_after:
        return x_BxHxIxJxD
    n_blocks = x_BxHxIxJxD.size(2)
    padded = F.pad(x_BxHxIxJxD, (0, 0, 0, 0, n_before, n_after))
    return torch.cat([padded[:, :, shift : shift + n_blocks] for shift in range(n_before + 1 + n_after)], dim=3)
