"""A moving average of the weights, kept beside them (Polyak and Juditsky 1992)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from nanolm.training.distributed.parallel import local_shards

# By the name of the parameter; one that has several names has the first.
Averages = dict[str, torch.Tensor]


@torch.no_grad()
def begin(model: nn.Module) -> Averages:
    """The weights as they are, copied."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def update(averages: Averages, model: nn.Module, decay: float, step: int) -> None:
    """Moves each average towards its weight, in place.

    average <- d average + (1 - d) weight, with d = min(decay, (1 + step) / (10 + step)): at first the average follows
    fast, or it would be that of weights that know nothing (as tf.train.ExponentialMovingAverage does with num_updates).

    Args:
        step: updates done.
    """
    weights = dict(model.named_parameters())
    current = min(decay, (1 + step) / (10 + step))
    own, towards = local_shards(list(averages.values())), local_shards([weights[name] for name in averages])
    torch._foreach_lerp_(own, towards, 1 - current)


@contextlib.contextmanager
def swapped(averages: Averages, model: nn.Module) -> Iterator[None]:
    """Inside, the model has the averages as its weights; then it has its own again, to the bit."""
    _swap(averages, model)
    try:
        yield
    finally:
        _swap(averages, model)


@torch.no_grad()
def _swap(averages: Averages, model: nn.Module) -> None:
    weights = dict(model.named_parameters())
    for name, average in averages.items():
        kept = average.clone()
        average.copy_(weights[name])
        weights[name].copy_(kept)


@torch.no_grad()
def copy_(averages: Averages, model: nn.Module) -> None:
    """Gives a model the averages as its weights, for good."""
    for name, parameter in model.named_parameters():
        parameter.copy_(averages[name])
