"""Multi-head attention layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import AttentionKind, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.cache import LayerCache
from nanolm.model.positions import rotate


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    With qk_norm, queries and keys are normalized to unit mean square before the dot product, which bounds the scores
    (Henry et al. 2020).
    """

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.n_heads = size.n_heads
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout_of(config.attention_dropout)
        bias = config.has_attention_bias
        row_counts = tuple(size.n_heads * width for width in (size.key_width, size.key_width, size.value_width))
        # For initializers and optimizers that treat the stacked matrices of a linear layer separately.
        self.row_counts = {"query_key_value": row_counts}
        self.query_key_value = nn.Linear(size.d_model, sum(row_counts), bias=bias)
        self.projection = nn.Linear(row_counts[-1], size.d_model, bias=bias) if config.output_projection else None

    def forward(
        self,
        x_BxTxC: torch.Tensor,
        attend: AttentionFn,
        rotary_2xTxR: torch.Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Return the output of attention, of the shape of the input.

        Args:
            x_BxTxC: input, after the norm if there is one.
            attend: attention function of the layer's mask.
            rotary_2xTxR: rotary position embedding of these positions; None without it.
            cache: keys and values of earlier positions, to which these are appended; None without a cache.
        """
        q_BxHxTxD, k_BxHxTxD, v_BxHxTxE = (
            projected.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projected in self.query_key_value(x_BxTxC).split(self.row_counts["query_key_value"], dim=-1)
        )
        if self.qk_norm:
            q_BxHxTxD, k_BxHxTxD = (F.rms_norm(x, x.shape[-1:]) for x in (q_BxHxTxD, k_BxHxTxD))
        if rotary_2xTxR is not None:
            q_BxHxTxD, k_BxHxTxD = rotate(q_BxHxTxD, rotary_2xTxR), rotate(k_BxHxTxD, rotary_2xTxR)
        k_BxHxSxD, v_BxHxSxE = (k_BxHxTxD, v_BxHxTxE) if cache is None else cache.append(k_BxHxTxD, v_BxHxTxE)
        y_BxHxTxE = attend(q_BxHxTxD, k_BxHxSxD, v_BxHxSxE, self.dropout if self.training else 0.0)
        y_BxTxHE = y_BxHxTxE.transpose(1, 2).flatten(2)
        return y_BxTxHE if self.projection is None else self.projection(y_BxTxHE)


class UniformAttention(nn.Module):
    """Attention with equal weights on all visible positions: the mean of the inputs, without queries, keys and heads.

    There is no value matrix either: under equal weights it would merge with the output projection into one matrix.
    """

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.dropout = config.dropout_of(config.attention_dropout)
        self.projection = (
            nn.Linear(size.d_model, size.d_model, bias=config.has_attention_bias) if config.output_projection else None
        )

    def forward(
        self,
        x_BxTxC: torch.Tensor,
        attend: AttentionFn,
        rotary_2xTxR: torch.Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Return the output of attention; arguments as in `Attention.forward`, of which rotary_2xTxR is ignored."""
        x_Bx1xSxC = x_Bx1xTxC = x_BxTxC[:, None]
        if cache is not None:
            _, x_Bx1xSxC = cache.append(x_Bx1xTxC, x_Bx1xTxC)
        y_BxTxC = attend(x_Bx1xTxC, x_Bx1xSxC, x_Bx1xSxC, self.dropout if self.training else 0.0)[:, 0]
        return y_BxTxC if self.projection is None else self.projection(y_BxTxC)


ATTENTIONS = {AttentionKind.softmax: Attention, AttentionKind.uniform: UniformAttention}
