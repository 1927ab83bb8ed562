"""Norms, the feed-forward, and the block that joins them to attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config import Activation, Norm, SizeConfig, TransformerConfig
from nanolm.model.attention import Attention


class RMSNorm(nn.Module):
    """x divided by its root mean square (Zhang and Sennrich 2019), without weights."""

    def forward(self, x_BxTxC: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return F.rms_norm(x_BxTxC, x_BxTxC.shape[-1:])


def norm(config: TransformerConfig, d_model: int) -> nn.Module:
    """The norm that the settings name."""
    if config.norm is Norm.rms_norm:
        return RMSNorm()
    return nn.LayerNorm(d_model, bias=config.bias)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    return F.relu(x).square()


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form (Hendrycks and Gimpel 2016), as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {Activation.relu_squared: relu_squared, Activation.gelu_tanh: gelu_tanh}


class FeedForward(nn.Module):
    """Two layers, position by position, four times as wide inside."""

    def __init__(self, config: TransformerConfig, d_model: int) -> None:
        super().__init__()
        self.expansion = nn.Linear(d_model, 4 * d_model, bias=config.bias)
        self.projection = nn.Linear(4 * d_model, d_model, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BxTxC: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return self.projection(self.activation(self.expansion(x_BxTxC)))


class Block(nn.Module):
    """Attention, then the feed-forward, each behind a norm and added to the stream."""

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.attention_norm = norm(config, size.d_model)
        self.attention = Attention(config, size)
        self.feed_forward_norm = norm(config, size.d_model)
        self.feed_forward = FeedForward(config, size.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BxTxC: torch.Tensor, rotary_2xTxP: torch.Tensor | None, visible_TxT: torch.Tensor | None
    ) -> torch.Tensor:
        """Same shape; `rotary_2xTxP` and `visible_TxT` are as attention takes them."""
        x_BxTxC = x_BxTxC + self.dropout(self.attention(self.attention_norm(x_BxTxC), rotary_2xTxP, visible_TxT))
        return x_BxTxC + self.dropout(self.feed_forward(self.feed_forward_norm(x_BxTxC)))
