"""Attention: each position gathers values from the positions that its mask lets it see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import AttentionKind, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.cache import LayerCache
from nanolm.model.positions import rotate


def attention(config: TransformerConfig, size: SizeConfig) -> nn.Module:
    """The attention that the settings name."""
    return ATTENTIONS[config.attention](config, size)


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    With qk_norm, queries and keys are brought to unit mean square before they meet (Henry et al. 2020), so that scores
    cannot grow without bound.
    """

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.n_heads = size.n_heads
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout_of(config.attention_dropout)
        bias = config.has_attention_bias
        rows = tuple(size.n_heads * width for width in (size.key_width, size.key_width, size.value_width))
        # Rows of the matrices that are one linear layer, for what takes matrix by matrix.
        self.row_counts = {"query_key_value": rows}
        self.query_key_value = nn.Linear(size.d_model, sum(rows), bias=bias)
        self.projection = nn.Linear(rows[-1], size.d_model, bias=bias) if config.output_projection else None

    def forward(
        self,
        x_BxTxC: torch.Tensor,
        gather: AttentionFn,
        rotary_2xTxP: torch.Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """x_BxTxC to the same shape.

        Args:
            x_BxTxC: the stream, normalised.
            gather: who sees whom, as a path computes it.
            rotary_2xTxP: turns the queries and keys of these positions, where it is given.
            cache: keys and values of the positions before these, which it takes up.
        """
        q_BxHxTxD, k_BxHxTxD, v_BxHxTxD = (
            part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(x_BxTxC).split(self.row_counts["query_key_value"], dim=-1)
        )
        if self.qk_norm:
            q_BxHxTxD, k_BxHxTxD = (F.rms_norm(x, x.shape[-1:]) for x in (q_BxHxTxD, k_BxHxTxD))
        if rotary_2xTxP is not None:
            q_BxHxTxD, k_BxHxTxD = rotate(q_BxHxTxD, rotary_2xTxP), rotate(k_BxHxTxD, rotary_2xTxP)
        if cache is not None:
            k_BxHxTxD, v_BxHxTxD = cache.with_past(k_BxHxTxD, v_BxHxTxD)
        gathered_BxHxTxD = gather(q_BxHxTxD, k_BxHxTxD, v_BxHxTxD, self.dropout if self.training else 0.0)
        gathered_BxTxW = gathered_BxHxTxD.transpose(1, 2).flatten(2)
        return gathered_BxTxW if self.projection is None else self.projection(gathered_BxTxW)


class UniformAttention(nn.Module):
    """The plain mean of what the mask lets a position see: the averaging that attention learns to weigh."""

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.dropout = config.dropout_of(config.attention_dropout)
        self.projection = (
            nn.Linear(size.d_model, size.d_model, bias=config.has_attention_bias) if config.output_projection else None
        )

    def forward(
        self,
        x_BxTxC: torch.Tensor,
        gather: AttentionFn,
        rotary_2xTxP: torch.Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """x_BxTxC to the same shape; the rest is as `Attention` takes it, and nothing is rotated."""
        x_Bx1xTxC = x_BxTxC[:, None]
        if cache is not None:
            _, x_Bx1xTxC = cache.with_past(x_Bx1xTxC, x_Bx1xTxC)
        mean_BxTxC = gather(x_Bx1xTxC, x_Bx1xTxC, x_Bx1xTxC, self.dropout if self.training else 0.0)[:, 0]
        return mean_BxTxC if self.projection is None else self.projection(mean_BxTxC)


ATTENTIONS = {AttentionKind.softmax: Attention, AttentionKind.uniform: UniformAttention}
