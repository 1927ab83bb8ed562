"""Optimizers by name, and which parameters each setting reaches."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nanolm.config.optimizer import (
    DECAYED_GROUPS,
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    LrMultipliers,
    MuonConfig,
    OptimizerConfig,
    ScheduleFreeConfig,
    SGDConfig,
)
from nanolm.registry import OPTIMIZERS
from nanolm.training.optimizers.lion import Lion
from nanolm.training.optimizers.muon import Muon
from nanolm.training.optimizers.schedule_free import ScheduleFreeAdamW


def build(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over all parameters of the model."""
    return OPTIMIZERS[config.name](model, config)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters of the model by group, each with its lr and weight decay; groups without any are left out."""
    group_of = _group_of(model)
    groups: dict[str, list[nn.Parameter]] = {field.name: [] for field in dataclasses.fields(LrMultipliers)}
    for parameter in model.parameters():
        groups[group_of.get(id(parameter), "other")].append(parameter)
    return [
        {
            "params": parameters,
            "name": name,
            "lr": config.lr * getattr(config.lr_multipliers, name),
            "weight_decay": config.weight_decay if name in DECAYED_GROUPS else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def _group_of(model: nn.Module) -> dict[int, str]:
    """The group of each parameter by its id; a matrix that is an embedding too is one."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                group = "embedding"
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                group = "norm"
            elif name == "bias" or name.endswith("_bias"):
                group = "bias"
            elif isinstance(module, nn.Linear):
                group = "head" if path.split(".")[-1] == "head" else "hidden"
            else:
                continue
            if found.get(id(parameter)) != "embedding":
                found[id(parameter)] = group
    return found


def describe_groups(config: OptimizerConfig, optimizer: torch.optim.Optimizer) -> str:
    """The groups of parameters, how many numbers are in each, and what is its own; '' of an optimizer without names."""
    written = []
    for group in optimizer.param_groups:
        if "name" not in group:
            return ""
        own = [group["rule"]] if "rule" in group else []
        own_lr = config.lr * getattr(config.lr_multipliers, group["name"])
        if own_lr != config.lr:
            own.append(f"lr {own_lr:.3g}")
        if group["weight_decay"]:
            own.append(f"decay {group['weight_decay']:g}")
        count = sum(parameter.numel() for parameter in group["params"])
        written.append(f"{group['name']} {count:,}" + (f" ({', '.join(own)})" if own else ""))
    return f"{config.name}, lr {config.lr:g}: {', '.join(written)}"


@contextlib.contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model has the weights to evaluate and to save: of schedule_free the averaged ones."""
    with optimizer.averaged() if isinstance(optimizer, ScheduleFreeAdamW) else contextlib.nullcontext():
        yield


@OPTIMIZERS.register("adam")
def adam(model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
    """Adam in one fused kernel where the device has it."""
    return torch.optim.Adam(parameter_groups(model, config), **_adam_settings(model, config))


@OPTIMIZERS.register("adamw")
def adamw(model: nn.Module, config: AdamWConfig) -> torch.optim.Optimizer:
    """AdamW in one fused kernel where the device has it."""
    return torch.optim.AdamW(parameter_groups(model, config), **_adam_settings(model, config))


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
    return torch.optim.SGD(parameter_groups(model, config), lr=config.lr, momentum=config.momentum)


@OPTIMIZERS.register("muon")
def muon(model: nn.Module, config: MuonConfig) -> torch.optim.Optimizer:
    """Muon for the hidden matrices, AdamW for all else."""
    groups = parameter_groups(model, config)
    for group in groups:
        group["rule"] = "muon" if group["name"] == "hidden" else "adamw"
    return Muon(
        groups,
        row_counts=_row_counts(model),
        lr=config.lr,
        momentum=config.momentum,
        initial_momentum=config.initial_momentum,
        momentum_warmup_steps=config.momentum_warmup_steps,
        newton_schulz_steps=config.newton_schulz_steps,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def _row_counts(model: nn.Module) -> dict[torch.Tensor, tuple[int, ...]]:
    """How many rows each matrix has where a linear layer holds several, one above another.

    A module says so of its linear layers, as in `row_counts = {"query_key_value": (64, 64, 64)}`.
    """
    return {
        linear.weight: tuple(counts)
        for module in model.modules()
        for name, counts in getattr(module, "row_counts", {}).items()
        if isinstance(linear := module.get_submodule(name), nn.Linear)
    }


@OPTIMIZERS.register("lion")
def lion(model: nn.Module, config: LionConfig) -> torch.optim.Optimizer:
    """Lion."""
    return Lion(parameter_groups(model, config), lr=config.lr, betas=(config.beta1, config.beta2))


@OPTIMIZERS.register("adafactor")
def adafactor(model: nn.Module, config: AdafactorConfig) -> torch.optim.Optimizer:
    """Adafactor without a first moment."""
    return torch.optim.Adafactor(
        parameter_groups(model, config),
        lr=config.lr,
        beta2_decay=config.beta2_decay,
        eps=(None, config.min_scale),
        d=config.clip_threshold,
    )


@OPTIMIZERS.register("schedule_free")
def schedule_free(model: nn.Module, config: ScheduleFreeConfig) -> torch.optim.Optimizer:
    """Schedule-free AdamW."""
    return ScheduleFreeAdamW(
        parameter_groups(model, config), lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps
    )
