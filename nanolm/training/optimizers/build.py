"""Build optimizers by name, with parameter groups that differ in lr and weight decay."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

import torch
from torch import nn

from nanolm.config.optimizer import (
    DECAYED_GROUPS,
    AdafactorConfig,
    AdamConfig,
    LionConfig,
    LrMultipliers,
    MuonConfig,
    OptimizerConfig,
    ScheduleFreeConfig,
    SGDConfig,
)
from nanolm.model.lora import LoraLinear, trained_parameters
from nanolm.registry import OPTIMIZERS
from nanolm.training.distributed.parallel import is_sharded
from nanolm.training.optimizers.lion import Lion
from nanolm.training.optimizers.muon import Muon, Split
from nanolm.training.optimizers.schedule_free import ScheduleFreeAdamW

# Methods that torch hides from its compiler, which it imports for that at their first call: as long as importing torch.
_HIDDEN_METHODS = ("add_param_group", "state_dict", "load_state_dict")


def build(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the configured optimizer for the trained parameters of a model: its adapters, or else all."""
    _do_not_import_the_compiler()
    return OPTIMIZERS[config.name](model, config)


def _do_not_import_the_compiler() -> None:
    """Mark the hidden methods as if the compiler had been imported; no compiled function here calls them."""
    if "torch._dynamo" not in sys.modules:
        for name in _HIDDEN_METHODS:
            method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
            if method is not None:
                method.__dict__.setdefault("__dynamo_disable", method)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the trained parameters into groups, each with its lr and weight decay; empty groups are omitted."""
    group_of = _group_of(model)
    decayed = (*DECAYED_GROUPS, "embedding") if config.decay_embeddings else DECAYED_GROUPS
    groups: dict[str, list[nn.Parameter]] = {field.name: [] for field in dataclasses.fields(LrMultipliers)}
    for parameter in trained_parameters(model).values():
        groups[group_of.get(id(parameter), "other")].append(parameter)
    return [
        {
            "params": parameters,
            "name": name,
            "lr": config.lr * getattr(config.lr_multipliers, name),
            "weight_decay": config.weight_decay if name in decayed else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def _group_of(model: nn.Module) -> dict[int, str]:
    """Map the id of each parameter to its group; a tied embedding and head belong to "embedding"."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Embedding):
                group = "embedding"
            elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
                group = "norm"
            elif isinstance(module, nn.RNNBase):
                group = "bias" if name.startswith("bias") else "hidden"
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
    """Describe the size of each parameter group and its lr and weight decay where they differ from the default.

    Returns:
        An empty string for an optimizer whose groups have no names, as a plugin may register.
    """
    descriptions = []
    for group in optimizer.param_groups:
        if "name" not in group:
            return ""
        settings = [group["rule"]] if "rule" in group else []
        lr = config.lr * getattr(config.lr_multipliers, group["name"])
        if lr != config.lr:
            settings.append(f"lr {lr:.3g}")
        if group["weight_decay"]:
            settings.append(f"decay {group['weight_decay']:g}")
        count = sum(parameter.numel() for parameter in group["params"])
        descriptions.append(f"{group['name']} {count:,}" + (f" ({', '.join(settings)})" if settings else ""))
    return f"{config.name}, lr {config.lr:g}: {', '.join(descriptions)}"


def evaluation_weights(optimizer: torch.optim.Optimizer) -> contextlib.AbstractContextManager[None]:
    """Set the weights that are evaluated and saved inside the context: the averages of schedule_free."""
    return optimizer.averaged() if isinstance(optimizer, ScheduleFreeAdamW) else contextlib.nullcontext()


@OPTIMIZERS.register("adam")
@OPTIMIZERS.register("adamw")
def adam(model: nn.Module, config: AdamConfig) -> torch.optim.Optimizer:
    """Build Adam or AdamW, fused where the device supports it."""
    optimizers = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return optimizers[config.name](
        parameter_groups(model, config),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=_has_fused(model),
    )


@OPTIMIZERS.register("sgd")
def sgd(model: nn.Module, config: SGDConfig) -> torch.optim.Optimizer:
    """Build stochastic gradient descent with momentum, fused where the device supports it."""
    # PyTorch has no fused SGD of sharded parameters.
    is_fused = _has_fused(model) and not any(map(is_sharded, model.parameters()))
    optimizer = torch.optim.SGD(parameter_groups(model, config), lr=config.lr, momentum=config.momentum, fused=is_fused)
    # The first fused update leaves the momenta uninitialized if it is skipped.
    for parameter in trained_parameters(model).values() if config.momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _has_fused(model: nn.Module) -> bool:
    return next(model.parameters()).device.type in ("cpu", "cuda", "mps")


@OPTIMIZERS.register("muon")
def muon(model: nn.Module, config: MuonConfig) -> torch.optim.Optimizer:
    """Build Muon for the hidden matrices and AdamW for all other parameters."""
    groups = parameter_groups(model, config)
    for group in groups:
        group["rule"] = "muon" if group["name"] == "hidden" else "adamw"
    return Muon(groups, config, _splits(model, config.split_heads))


def _splits(model: nn.Module, by_head: bool) -> dict[torch.Tensor, Split]:
    """Map each weight that holds several matrices to how it divides into them.

    A module declares the rows of the matrices that are stacked in its linear layers, as in
    `row_counts = {"query_key_value": (64, 64, 64)}`, and attention its heads, as `head_row_counts` and
    `head_column_counts`. A recurrent layer stacks the matrices of its gates.
    """
    declarations = {"row_counts": 0, "head_row_counts": 0, "head_column_counts": 1} if by_head else {"row_counts": 0}
    splits: dict[torch.Tensor, Split] = {}
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            width = module.hidden_size
            weights = (weight for name, weight in module.named_parameters() if name.startswith("weight"))
            splits.update((weight, Split((width,) * (len(weight) // width), 0)) for weight in weights)
        for attribute, dim in declarations.items():
            for name, counts in getattr(module, attribute, {}).items():
                linear = module.get_submodule(name)
                if isinstance(linear, LoraLinear):
                    # B has the rows of the weight that it is added to, and A its columns.
                    splits[linear.lora_a if dim else linear.lora_b] = Split(tuple(counts), dim)
                elif isinstance(linear, nn.Linear):
                    splits[linear.weight] = Split(tuple(counts), dim)
    return splits


@OPTIMIZERS.register("lion")
def lion(model: nn.Module, config: LionConfig) -> torch.optim.Optimizer:
    return Lion(parameter_groups(model, config), (config.beta1, config.beta2))


@OPTIMIZERS.register("adafactor")
def adafactor(model: nn.Module, config: AdafactorConfig) -> torch.optim.Optimizer:
    """Build Adafactor without a first moment."""
    return torch.optim.Adafactor(
        parameter_groups(model, config),
        lr=config.lr,
        beta2_decay=config.beta2_decay,
        eps=(None, config.min_scale),
        d=config.clip_threshold,
    )


@OPTIMIZERS.register("schedule_free")
def schedule_free(model: nn.Module, config: ScheduleFreeConfig) -> torch.optim.Optimizer:
    return ScheduleFreeAdamW(parameter_groups(model, config), (config.beta1, config.beta2), config.eps)
