"""Low-rank adapters (LoRA, Hu et al. 2021): frozen linear layers with a trained update of low rank.

A layer with an adapter computes W x + (alpha / rank) B A x, where A is a matrix of rank x inputs and B one of
outputs x rank. B is zero at the start, so that the model equals its base.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from nanolm.config.model import LORA_TARGETS, LoraConfig, TransformerConfig
from nanolm.config.run import Config


class LoraLinear(nn.Linear):
    """A linear layer that is frozen, with a trained update of low rank. It takes over the parameters of another layer.

    The names of the base's parameters do not change, and weights that are stacked (`row_counts`) share A.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        # nn.Linear would allocate and draw weights.
        super(nn.Linear, self).__init__()
        assert config.rank is not None
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.bias = base.bias
        self.lora_a = nn.Parameter(base.weight.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, config.rank))
        self.lora_scale = config.alpha / config.rank
        self.lora_dropout = nn.Dropout(config.dropout)
        if not self.lora_a.is_meta:
            # U(+-1/sqrt(inputs)), as in the authors' implementation.
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.linear(self.lora_dropout(x), self.lora_a)
        return F.linear(x, self.weight, self.bias) + F.linear(hidden * self.lora_scale, self.lora_b)

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """Return W + (alpha / rank) B A."""
        return self.weight + self.lora_scale * (self.lora_b @ self.lora_a)


def add_adapters(model: nn.Module, blocks: nn.ModuleList, config: LoraConfig) -> None:
    """Freeze a model, and add trained adapters to the targets in its blocks."""
    model.requires_grad_(False)
    for block in blocks:
        for target in config.targets:
            parent, _, name = LORA_TARGETS[target].rpartition(".")
            module = block.get_submodule(parent)
            layer = module.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            setattr(module, name, LoraLinear(layer, config))


def adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the matrices A and B of a model by name; empty for a model without adapters."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}
    return {
        f"{path}.{name}": parameter
        for path, layer in layers.items()
        for name, parameter in (("lora_a", layer.lora_a), ("lora_b", layer.lora_b))
    }


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, averaged and saved in checkpoints: the adapters, or else all."""
    return adapters(model) or dict(model.named_parameters())


def without_adapters(config: Config) -> Config:
    """Return the settings of a model with its adapters merged into its weights."""
    if not isinstance(config.model, TransformerConfig):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lora=LoraConfig()))


def merged_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a model with its adapters merged into its weights; tensors may share its memory.

    For a model without adapters it is its state dict.
    """
    without = adapters(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in without}
    for path, module in model.named_modules():
        if isinstance(module, LoraLinear):
            state[f"{path}.weight"] = module.merged_weight()
    return state
