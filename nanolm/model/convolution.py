"""Causal convolutions, which show every position those just before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from nanolm.model.fused_ops import causal_convolution, causal_convolution_formula


class CausalConvolution(nn.Module):
    """x_t + w_1 x_(t-1) + ... + w_K x_(t-K), with weights per channel (depthwise) that are zero at first.

    Attention would have to learn what a transformer needs early: to look at the preceding tokens. Primer (So et al.
    2021) convolves queries, keys and values in this way, Allen-Zhu 2025 the inputs of all sublayers.

    Args:
        width: K + 1, the number of positions that a position reads.
    """

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.weight_KxC = nn.Parameter(torch.zeros(width - 1, d_model))

    def forward(self, x_BxTxC: torch.Tensor, documents_BxT: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve embeddings or inputs of a sublayer.

        Args:
            documents_BxT: document number of each token, which then reads none of another document.
        """
        if documents_BxT is None:
            return causal_convolution(x_BxTxC, self.weight_KxC)
        return causal_convolution_formula(x_BxTxC, self.weight_KxC, documents_BxT)

    def last(self, embedding: nn.Embedding, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return x_BxC of the last token of each text, of which at most the last `width` tokens are read."""
        device = self.weight_KxC.device
        width = len(self.weight_KxC) + 1
        recent = [list(text[-width:]) for text in texts]
        tokens_BxW = torch.tensor([[0] * (width - len(text)) + text for text in recent], device=device)
        exists_BxW = torch.tensor([[0.0] * (width - len(text)) + [1.0] * len(text) for text in recent], device=device)
        x_BxWxC = embedding(tokens_BxW)
        weight_WxC = torch.cat([self.weight_KxC.flip(0), torch.ones_like(self.weight_KxC[:1])])
        return (x_BxWxC * (weight_WxC * exists_BxW[..., None].to(x_BxWxC.dtype))).sum(dim=1)
