"""Multi-head attention layers."""

from __future__ import annotations

import torch
from torch import nn

from nanolm.config.model import AttentionKind, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.cache import LayerCache
from nanolm.model.fused_ops import Heads, split_heads


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    With fewer heads of keys and values than of queries, each is shared by a group of query heads (grouped-query
    attention, Ainslie et al. 2023). With qk_norm, queries and keys are normalized to unit mean square before the dot
    product, which bounds the scores (Henry et al. 2020).
    """

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.n_heads = size.n_heads
        self.n_kv_heads = size.key_value_heads
        self.heads = Heads(self.n_heads, self.n_kv_heads, size.key_width, config.qk_norm, config.norm_eps)
        self.dropout = config.dropout_of(config.attention_dropout)
        bias = config.has_attention_bias
        row_counts = (
            size.n_heads * size.key_width,
            size.key_value_heads * size.key_width,
            size.key_value_heads * size.value_width,
        )
        # For initializers and optimizers that treat the stacked matrices of a linear layer separately.
        self.row_counts = {"query_key_value": row_counts}
        self.query_key_value = nn.Linear(size.d_model, sum(row_counts), bias=bias)
        self.head_row_counts = {
            "query_key_value": (size.n_heads + size.key_value_heads) * (size.key_width,)
            + size.key_value_heads * (size.value_width,)
        }
        values = size.n_heads * size.value_width
        self.projection = nn.Linear(values, size.d_model, bias=bias) if config.output_projection else None
        # The output matrices of the heads are side by side.
        has_projection = config.output_projection
        self.head_column_counts = {"projection": size.n_heads * (size.value_width,)} if has_projection else {}

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
        q_BxHxTxD, k_BxGxTxD, v_BxGxTxE = split_heads(self.query_key_value(x_BxTxC), self.heads, rotary_2xTxR)
        k_BxGxSxD, v_BxGxSxE = (k_BxGxTxD, v_BxGxTxE) if cache is None else cache.append(k_BxGxTxD, v_BxGxTxE)
        k_BxHxSxD, v_BxHxSxE = self._repeat(k_BxGxSxD), self._repeat(v_BxGxSxE)
        y_BxHxTxE = attend(q_BxHxTxD, k_BxHxSxD, v_BxHxSxE, self.dropout if self.training else 0.0)
        y_BxTxHE = y_BxHxTxE.transpose(1, 2).flatten(2)
        return y_BxTxHE if self.projection is None else self.projection(y_BxTxHE)

    def _repeat(self, x_BxGxSxD: torch.Tensor) -> torch.Tensor:
        """Repeat the keys or values of each head for the query heads that share it: BxHxSxD."""
        n_queries = self.n_heads // self.n_kv_heads
        return x_BxGxSxD if n_queries == 1 else x_BxGxSxD.repeat_interleave(n_queries, dim=1)


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
