"""Averages of the weights: exponential moving ones (Polyak and Juditsky 1992), and of the tail of a run (Ruppert 1988).

Training does not depend on the averages: weights and the choice of the best checkpoint are the same without them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from nanolm.config.fractions import steps_until
from nanolm.config.trainer import TrainerConfig
from nanolm.model.lora import trained_parameters
from nanolm.training.distributed.parallel import local_shards
from nanolm.training.optimizers.foreach import lerp_

# By parameter name; tied parameters appear once, under their first name.
Averages = dict[str, torch.Tensor]


@torch.no_grad()
def init(model: nn.Module) -> Averages:
    """Return averages of the trained parameters that equal their current values."""
    return {name: parameter.detach().clone() for name, parameter in trained_parameters(model).items()}


def decay_at(trainer: TrainerConfig, step: int) -> float:
    """Return d of the update after a step: average <- d average + (1 - d) weight.

    With ema_decay, d = min(ema_decay, (1 + step) / (10 + step)) lets early averages forget the initial weights, as
    num_updates does in tf.train.ExponentialMovingAverage. With average_last, the average equals the weights until its
    steps begin; after n of these, d = 1 - 1 / n makes it their mean.

    Args:
        trainer: of a run that averages its weights.
        step: optimizer steps done, the latest included.
    """
    if trainer.ema_decay is not None:
        return min(trainer.ema_decay, (1 + step) / (10 + step))
    assert trainer.average_last is not None, "a run without averages"
    n_averaged = max(1, steps_until(trainer.average_last, trainer.steps))
    n_done = step - (trainer.steps - n_averaged)
    return 1 - 1 / n_done if n_done > 1 else 0.0


@torch.no_grad()
def update(averages: Averages, model: nn.Module, decay: float, is_skipped: torch.Tensor | None = None) -> None:
    """Update the averages in place: average <- decay average + (1 - decay) weight.

    Args:
        is_skipped: a 0-d tensor whose value 1 leaves the averages unchanged; None updates them.
    """
    weights = dict(model.named_parameters())
    shards, weight_shards = local_shards(list(averages.values())), local_shards([weights[name] for name in averages])
    if is_skipped is None:
        torch._foreach_lerp_(shards, weight_shards, 1 - decay)
    else:
        lerp_(shards, weight_shards, 1 - decay, is_skipped)


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
