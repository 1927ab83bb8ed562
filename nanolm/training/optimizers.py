"""Optimizers by name, and which parameters each setting reaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nanolm.config import AdamConfig, AdamWConfig, OptimizerConfig, SGDConfig
from nanolm.registry import OPTIMIZERS


def build(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over all parameters of the model."""
    return OPTIMIZERS[config.name](model, config)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices of linear layers decay; embeddings, norms and biases do not."""
    decayed = {id(parameter) for parameter in _linear_weights(model)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        groups[id(parameter) in decayed].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]


def _linear_weights(model: nn.Module) -> Iterator[torch.Tensor]:
    return (module.weight for module in model.modules() if isinstance(module, nn.Linear))


@OPTIMIZERS.register("adam")
def adam(model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
    """Adam in one fused kernel where the device has it."""
    return torch.optim.Adam(parameter_groups(model, config.weight_decay), **_adam_settings(model, config))


@OPTIMIZERS.register("adamw")
def adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.Optimizer:
    """AdamW in one fused kernel where the device has it."""
    return torch.optim.AdamW(parameter_groups(model, config.weight_decay), **_adam_settings(model, config))


def _adam_settings(model: nn.Module, config: AdamConfig) -> dict[str, Any]:
    device = next(model.parameters()).device.type
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "fused": device in ("cpu", "cuda", "mps"),
    }


@OPTIMIZERS.register("sgd")
def sgd(model: nn.Module, config: SGDConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
