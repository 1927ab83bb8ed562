"""Attention: each position gathers values from the positions that its mask lets it see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config import SizeConfig, TransformerConfig
from nanolm.model.positions import rotate


class Attention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, section 3.2).

    With qk_norm, queries and keys are brought to unit mean square before they meet (Henry et al. 2020), so that scores
    cannot grow without bound.
    """

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.n_heads = size.n_heads
        self.qk_norm = config.qk_norm
        self.dropout = config.dropout
        bias = config.bias if config.attention_bias is None else config.attention_bias
        self.query_key_value = nn.Linear(size.d_model, 3 * size.d_model, bias=bias)
        # For optimizers that take matrix by matrix.
        self.row_counts = {"query_key_value": 3 * (size.d_model,)}
        self.projection = nn.Linear(size.d_model, size.d_model, bias=bias)

    def forward(
        self, x_BxTxC: torch.Tensor, rotary_2xTxP: torch.Tensor | None, visible_TxT: torch.Tensor | None
    ) -> torch.Tensor:
        """x_BxTxC to the same shape.

        Args:
            x_BxTxC: the stream, normalised.
            rotary_2xTxP: turns queries and keys, where it is given.
            visible_TxT: row q, column k is whether query q sees key k; it may be longer than x. None: causal.
        """
        B, T, C = x_BxTxC.shape
        qkv = self.query_key_value(x_BxTxC).view(B, T, 3, self.n_heads, C // self.n_heads)
        q_BxHxTxD, k_BxHxTxD, v_BxHxTxD = qkv.permute(2, 0, 3, 1, 4)
        if self.qk_norm:
            q_BxHxTxD, k_BxHxTxD = (F.rms_norm(x, x.shape[-1:]) for x in (q_BxHxTxD, k_BxHxTxD))
        if rotary_2xTxP is not None:
            q_BxHxTxD, k_BxHxTxD = rotate(q_BxHxTxD, rotary_2xTxP), rotate(k_BxHxTxD, rotary_2xTxP)
        gathered_BxHxTxD = F.scaled_dot_product_attention(
            q_BxHxTxD,
            k_BxHxTxD,
            v_BxHxTxD,
            attn_mask=None if visible_TxT is None else visible_TxT[:T, :T],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=visible_TxT is None,
        )
        return self.projection(gathered_BxHxTxD.transpose(1, 2).reshape(B, T, C))
