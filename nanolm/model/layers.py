"""Norms, the feed-forward, and the block that joins them to attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import Activation, FeedForwardKind, Norm, NormPlacement, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model.attention import attention
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.cache import LayerCache


class RMSNorm(nn.Module):
    """x divided by its root mean square (Zhang and Sennrich 2019), without weights."""

    def forward(self, x_BxTxC: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return F.rms_norm(x_BxTxC, x_BxTxC.shape[-1:])


def norm(config: TransformerConfig, d_model: int) -> nn.Module:
    """The norm that the settings name."""
    if config.norm is Norm.none:
        return nn.Identity()
    if config.norm is Norm.rms_norm:
        return RMSNorm()
    return nn.LayerNorm(d_model, bias=config.bias)


def relu_squared(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer)."""
    # A product stays in half precision under CUDA autocast, which computes powers in fp32.
    rectified = F.relu(x)
    return rectified * rectified


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form (Hendrycks and Gimpel 2016), as GPT-2 has it."""
    return F.gelu(x, approximate="tanh")


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """swish(a) * b of the two halves a, b of the last dimension (Shazeer 2020)."""
    a, b = x.chunk(2, dim=-1)
    return F.silu(a) * b


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.relu: F.relu,
    Activation.gelu: F.gelu,
    Activation.gelu_tanh: gelu_tanh,
    Activation.relu_squared: relu_squared,
    Activation.swiglu: swiglu,
}


class FeedForward(nn.Module):
    """One layer or two, position by position. With a gate the first of them is twice as wide."""

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        has_two = config.feed_forward is FeedForwardKind.two_layers
        width = size.hidden_width(config.has_gate) if has_two else size.d_model
        rows = (1 + config.has_gate) * (width,)
        # A gate is a matrix of its own.
        self.row_counts = {"expansion": rows}
        self.expansion = nn.Linear(size.d_model, sum(rows), bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.projection = nn.Linear(width, size.d_model, bias=config.bias) if has_two else None

    def forward(self, x_BxTxC: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        inside_BxTxF = self.activation(self.expansion(x_BxTxC))
        return inside_BxTxF if self.projection is None else self.projection(inside_BxTxF)


class Block(nn.Module):
    """Attention, then the feed-forward: each reads the stream, and adds to it or takes its place."""

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.norm_is_before = config.norm_placement is NormPlacement.pre
        self.is_residual = config.residual
        has_feed_forward = config.feed_forward is not FeedForwardKind.none
        self.attention_norm = norm(config, size.d_model)
        self.attention = attention(config, size)
        self.feed_forward_norm = norm(config, size.d_model) if has_feed_forward else None
        self.feed_forward = FeedForward(config, size) if has_feed_forward else None
        self.dropout = nn.Dropout(config.dropout_of(config.residual_dropout))

    def forward(
        self,
        x_BxTxC: torch.Tensor,
        gather: AttentionFn,
        rotary_2xTxP: torch.Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Same shape; the rest is as attention takes it."""
        read = self.attention_norm(x_BxTxC) if self.norm_is_before else x_BxTxC
        x_BxTxC = self._join(x_BxTxC, self.attention(read, gather, rotary_2xTxP, cache), self.attention_norm)
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x_BxTxC
        read = self.feed_forward_norm(x_BxTxC) if self.norm_is_before else x_BxTxC
        return self._join(x_BxTxC, self.feed_forward(read), self.feed_forward_norm)

    def _join(self, x_BxTxC: torch.Tensor, part_BxTxC: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        part_BxTxC = self.dropout(part_BxTxC)
        joined_BxTxC = x_BxTxC + part_BxTxC if self.is_residual else part_BxTxC
        return joined_BxTxC if self.norm_is_before else norm(joined_BxTxC)
