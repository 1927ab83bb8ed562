"""How a gradient moves the weights."""

from __future__ import annotations

import dataclasses

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import OPTIMIZERS


@dataclasses.dataclass
class OptimizerConfig:
    """What every optimizer has."""

    name: str = MISSING
    lr: float = bounded(2e-3, gt=0)
    weight_decay: float = bounded(0.0, ge=0)


@dataclasses.dataclass
class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba 2015). Weight decay, if any, is added to the gradient of matrices."""

    name: str = "adam"
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.999, ge=0, lt=1)
    eps: float = bounded(1e-8, gt=0)


@dataclasses.dataclass
class AdamWConfig(AdamConfig):
    """AdamW (Loshchilov and Hutter 2019). Weight decay reaches matrices; embeddings, norms and biases have none."""

    name: str = "adamw"
    weight_decay: float = bounded(0.1, ge=0)
    beta2: float = bounded(0.99, ge=0, lt=1)


@dataclasses.dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = bounded(0.1, gt=0)
    momentum: float = bounded(0.9, ge=0, lt=1)


declare(OPTIMIZERS, AdamConfig, AdamWConfig, SGDConfig)
