"""Exponential moving averages of the weights (Polyak and Juditsky 1992).

Training does not depend on the averages: weights and the choice of the best checkpoint are the same without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from nanolm.model.lora import trained_parameters
from nanolm.training.distributed.parallel import local_shards

# By parameter name; tied parameters appear once, under their first name.
Averages = dict[str, torch.Tensor]


@torch.no_grad()
def init(model: nn.Module) -> Averages:
    """Return averages of the trained parameters that equal their current values."""
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(model).items()}


@torch.no_grad()
def update(averages: Averages, model: nn.Module, decay: float, step: int) -> None:
    """Update the averages in place: average <- d average + (1 - d) weight.

    d = min(decay, (1 + step) / (10 + step)) lets early averages forget the initial weights, as num_updates does in
    tf.train.ExponentialMovingAverage.

    Args:
        decay: trainer.ema_decay.
        step: optimizer steps done, the latest included.
    """
    weights = dict(model.named_parameters())
    current_decay = min(decay, (1 + step) / (10 + step))
    shards, weight_shards = local_shards(list(averages.values())), local_shards([weights[name] for name in averages])
    torch._foreach_lerp_(shards, weight_shards, 1 - current_decay)


@contextlib.contextmanager
def swapped(averages: Averages, model: nn.Module) -> Iterator[None]:
    """Use the averages as the weights of the model inside the context; the weights are restored exactly."""
    _swap(averages, model)
    try:
        yield
    finally:
        _swap(averages, model)


@torch.no_grad()
def _swap(averages: Averages, model: nn.Module) -> None:
    weights = dict(model.named_parameters())
    for name, average in averages.items():
        copy = average.clone()
        average.copy_(weights[name])
        weights[name].copy_(copy)
