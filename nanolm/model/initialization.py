"""Weight initialization of the transformer.

A scheme is applied in place to a model whose weights PyTorch has initialized.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from nanolm.config.model import Initialization
from nanolm.model.attention import Attention, UniformAttention
from nanolm.model.layers import FeedForward


@torch.no_grad()
def gpt2(model: nn.Module) -> None:
    """N(0, 0.02), with residual projections scaled by 1 / sqrt(2 n_layers) (Radford et al. 2019, section 2.3)."""
    projections = _residual_projections(model)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    _zero_biases(model)
    for projection in projections:
        nn.init.normal_(projection.weight, std=0.02 / math.sqrt(len(projections)))


@torch.no_grad()
def xavier(model: nn.Module) -> None:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) for each matrix (Glorot and Bengio 2010)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for module in model.modules():
        for name, row_counts in getattr(module, "row_counts", {}).items():
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear), f"row_counts names {name}, which is not a linear layer"
            for matrix in layer.weight.split(row_counts):
                nn.init.xavier_uniform_(matrix)
    positions = getattr(model, "position_embedding", None)
    if positions is not None:
        nn.init.xavier_uniform_(positions.weight)
    _zero_biases(model)


def pytorch(model: nn.Module) -> None:
    """Keep PyTorch's default initialization."""


@torch.no_grad()
def zero_projections(model: nn.Module) -> None:
    """Set residual projections and the head to zero, draw other matrices from U(-a, a) of variance 1 / fan_in."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.Linear):
            bound = math.sqrt(3 / module.in_features)
            nn.init.uniform_(module.weight, -bound, bound)
    _zero_biases(model)
    for projection in _residual_projections(model):
        nn.init.zeros_(projection.weight)
    head = getattr(model, "head", None)
    if head is not None:
        nn.init.zeros_(head.weight)


INITIALIZATIONS: dict[Initialization, Callable[[nn.Module], None]] = {
    Initialization.gpt2: gpt2,
    Initialization.xavier: xavier,
    Initialization.pytorch: pytorch,
    Initialization.zero_projections: zero_projections,
}


def _zero_biases(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _residual_projections(model: nn.Module) -> list[nn.Linear]:
    """Return the output projections of all sublayers that have one."""
    sublayers = [module for module in model.modules() if isinstance(module, Attention | UniformAttention | FeedForward)]
    return [sublayer.projection for sublayer in sublayers if sublayer.projection is not None]
