"""Transformer blocks, built from attention, feed-forward networks and norms."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import Activation, FeedForwardKind, Norm, NormPlacement, TransformerConfig
from nanolm.config.size import SizeConfig
from nanolm.model.attention import ATTENTIONS
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.cache import LayerCache
from nanolm.model.convolution import CausalConvolution
from nanolm.model.fused_ops import relu_squared, rms_norm, swiglu

# PyTorch's default, and GPT-2's.
LAYER_NORM_EPS = 1e-5


class UnweightedRMSNorm(nn.RMSNorm):
    """RMSNorm without weights (Zhang and Sennrich 2019)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.eps)


def norm(config: TransformerConfig, d_model: int) -> nn.Module:
    """Build the layer that `model.norm` names."""
    if config.norm is Norm.none:
        return nn.Identity()
    if config.norm is Norm.rms_norm:
        kind = nn.RMSNorm if config.norm_weight else UnweightedRMSNorm
        return kind(d_model, eps=config.norm_eps, elementwise_affine=config.norm_weight)
    return nn.LayerNorm(d_model, eps=config.norm_eps or LAYER_NORM_EPS, bias=config.bias)


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.relu: F.relu,
    Activation.gelu: F.gelu,
    # Hendrycks and Gimpel 2016, as in GPT-2.
    Activation.gelu_tanh: functools.partial(F.gelu, approximate="tanh"),
    Activation.relu_squared: relu_squared,
    Activation.swiglu: swiglu,
}


class FeedForward(nn.Module):
    """Position-wise feed-forward network of one or two linear layers; a gated activation doubles the first one."""

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        has_two_layers = config.feed_forward is FeedForwardKind.two_layers
        width = size.hidden_width(config.has_gate) if has_two_layers else size.d_model
        row_counts = (1 + config.has_gate) * (width,)
        # The gate and the value are separate matrices, stacked in one linear layer.
        self.row_counts = {"expansion": row_counts}
        self.expansion = nn.Linear(size.d_model, sum(row_counts), bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.projection = nn.Linear(width, size.d_model, bias=config.bias) if has_two_layers else None

    def forward(self, x_BxTxC: torch.Tensor) -> torch.Tensor:
        hidden_BxTxF = self.activation(self.expansion(x_BxTxC))
        return hidden_BxTxF if self.projection is None else self.projection(hidden_BxTxF)


def convolve(
    convolution: CausalConvolution,
    x_BxTxC: torch.Tensor,
    documents_BxT: torch.Tensor | None,
    cache: LayerCache | None,
    sublayer: str,
) -> torch.Tensor:
    """Convolve the inputs of a sublayer, of which a cache holds the earlier ones."""
    if cache is None:
        return convolution(x_BxTxC, documents_BxT)
    length = x_BxTxC.size(1)
    x_BxTxC = cache.append_inputs(sublayer, x_BxTxC, len(convolution.weight_KxC))
    return convolution(x_BxTxC, documents_BxT)[:, -length:]


class Block(nn.Module):
    """Attention followed by a feed-forward network, as residual or plain sublayers with norms before or after them."""

    def __init__(self, config: TransformerConfig, size: SizeConfig) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_placement is NormPlacement.pre
        self.is_residual = config.residual
        has_feed_forward = config.feed_forward is not FeedForwardKind.none
        self.attention_norm = norm(config, size.d_model)
        self.attention = ATTENTIONS[config.attention](config, size)
        self.feed_forward_norm = norm(config, size.d_model) if has_feed_forward else None
        self.feed_forward = FeedForward(config, size) if has_feed_forward else None
        self.dropout = nn.Dropout(config.dropout_of(config.residual_dropout))
        self.attention_convolution: CausalConvolution | None = None
        self.feed_forward_convolution: CausalConvolution | None = None
        if config.sublayer_convolution is not None:
            self.attention_convolution = CausalConvolution(size.d_model, config.sublayer_convolution)
            if has_feed_forward:
                self.feed_forward_convolution = CausalConvolution(size.d_model, config.sublayer_convolution)

    def forward(
        self,
        x_BxTxC: torch.Tensor,
        attend: AttentionFn,
        rotary_2xTxR: torch.Tensor | None = None,
        cache: LayerCache | None = None,
        documents_BxT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the output of the block.

        Args:
            documents_BxT: document number of each token, if convolutions end where a document begins.

        The other arguments are those of `Attention.forward`.
        """

        def attention(x: torch.Tensor) -> torch.Tensor:
            if self.attention_convolution is not None:
                x = convolve(self.attention_convolution, x, documents_BxT, cache, "attention")
            return self.attention(x, attend, rotary_2xTxR, cache)

        x_BxTxC = self._sublayer(x_BxTxC, self.attention_norm, attention)
        feed_forward, convolution = self.feed_forward, self.feed_forward_convolution
        if feed_forward is None or self.feed_forward_norm is None:
            return x_BxTxC
        if convolution is None:
            return self._sublayer(x_BxTxC, self.feed_forward_norm, feed_forward)
        return self._sublayer(
            x_BxTxC,
            self.feed_forward_norm,
            lambda x: feed_forward(convolve(convolution, x, documents_BxT, cache, "feed_forward")),
        )

    def _sublayer(
        self, x_BxTxC: torch.Tensor, norm: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        y_BxTxC = self.dropout(function(norm(x_BxTxC) if self.is_pre_norm else x_BxTxC))
        if self.is_residual:
            y_BxTxC = x_BxTxC + y_BxTxC
        return y_BxTxC if self.is_pre_norm else norm(y_BxTxC)
