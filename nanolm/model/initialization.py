"""How the weights of a transformer begin. A scheme takes a model as torch's modules drew it."""

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
    """N(0, 0.02), residual projections divided by sqrt(2 n_layers) (Radford et al. 2019, section 2.3)."""
    projections = _residual_projections(model)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    _zero_biases(model)
    for projection in projections:
        nn.init.normal_(projection.weight, std=0.02 / math.sqrt(len(projections)))


@torch.no_grad()
def xavier(model: nn.Module) -> None:
    """Uniform in +-sqrt(6 / (inputs + outputs)) (Glorot and Bengio 2010), matrix by matrix."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    for module in model.modules():
        for name, rows in getattr(module, "row_counts", {}).items():
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear), f"{name} has rows of several matrices, and is {type(layer)}"
            for part in layer.weight.split(rows):
                nn.init.xavier_uniform_(part)
    positions = getattr(model, "position_embedding", None)
    if positions is not None:
        nn.init.xavier_uniform_(positions.weight)
    _zero_biases(model)


def pytorch(model: nn.Module) -> None:
    """As it was drawn."""


@torch.no_grad()
def zero_projections(model: nn.Module) -> None:
    """Residual projections and the head at zero, other matrices uniform with variance 1 / inputs."""
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
    """The last matrix of each part that has one on its way into the stream."""
    parts = (module for module in model.modules() if isinstance(module, Attention | UniformAttention | FeedForward))
    return [part.projection for part in parts if part.projection is not None]
