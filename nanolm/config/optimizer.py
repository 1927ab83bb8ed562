"""How a gradient moves the weights."""

from __future__ import annotations

import dataclasses

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import OPTIMIZERS

# Groups that weight decay reaches.
DECAYED_GROUPS = ("hidden", "head")


@dataclasses.dataclass
class LrMultipliers:
    """lr of each group of parameters, as so many times lr.

    hidden: matrices of linear layers.
    head: the matrix of the linear layer of that name, if it is not the embedding's.
    embedding: tables of embeddings.
    norm, bias: what norms have, and what is added.
    other: parameters that are none of these.
    """

    hidden: float = bounded(1.0, ge=0)
    head: float = bounded(1.0, ge=0)
    embedding: float = bounded(1.0, ge=0)
    norm: float = bounded(1.0, ge=0)
    bias: float = bounded(1.0, ge=0)
    other: float = bounded(1.0, ge=0)


@dataclasses.dataclass
class OptimizerConfig:
    """What every optimizer has. Weight decay reaches matrices; embeddings, norms and biases have none."""

    name: str = MISSING
    lr: float = bounded(2e-3, gt=0)
    weight_decay: float = bounded(0.0, ge=0, off="0 switches weight decay off")
    lr_multipliers: LrMultipliers = dataclasses.field(default_factory=LrMultipliers)


@dataclasses.dataclass
class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba 2015). Weight decay, if any, is added to the gradient."""

    name: str = "adam"
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.999, ge=0, lt=1)
    eps: float = bounded(1e-8, gt=0)


@dataclasses.dataclass
class AdamWConfig(AdamConfig):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: str = "adamw"
    weight_decay: float = bounded(0.1, ge=0, off="0 switches weight decay off")
    beta2: float = bounded(0.99, ge=0, lt=1)


@dataclasses.dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = bounded(0.1, gt=0)
    momentum: float = bounded(0.9, ge=0, lt=1, off="0 switches momentum off")


@dataclasses.dataclass
class MuonConfig(AdamWConfig):
    """Muon for hidden matrices (Jordan et al. 2024), AdamW with its own settings for all else; one lr serves both."""

    name: str = "muon"
    lr: float = bounded(0.01, gt=0)
    momentum: float = bounded(0.95, ge=0, lt=1, off="0 switches momentum off")
    # Momentum goes in a line from initial_momentum to momentum.
    initial_momentum: float = bounded(0.85, ge=0, lt=1)
    momentum_warmup_steps: int = bounded(300, ge=0, off="0 switches its warmup off")
    newton_schulz_steps: int = bounded(5, ge=1)


@dataclasses.dataclass
class LionConfig(OptimizerConfig):
    """Lion (Chen et al. 2023): the sign of a momentum. It wants a smaller lr than AdamW and a larger weight decay."""

    name: str = "lion"
    lr: float = bounded(1e-3, gt=0)
    weight_decay: float = bounded(0.2, ge=0, off="0 switches weight decay off")
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.99, ge=0, lt=1)


@dataclasses.dataclass
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018): a second moment by rows and columns, and no first.

    lr is relative to the root mean square of a tensor, and is at most the inverse root of the step.
    """

    name: str = "adafactor"
    lr: float = bounded(0.1, gt=0)
    # A second moment forgets with the power of the step.
    beta2_decay: float = bounded(-0.8, le=0)
    # The least scale of a tensor, and the largest root mean square of an update.
    min_scale: float = bounded(1e-3, gt=0)
    clip_threshold: float = bounded(1.0, ge=1)


@dataclasses.dataclass
class ScheduleFreeConfig(OptimizerConfig):
    """Schedule-free AdamW (Defazio et al. 2024), meant for scheduler=constant.

    What is evaluated, sampled and saved is the average of the weights.
    """

    name: str = "schedule_free"
    lr: float = bounded(5e-3, gt=0)
    weight_decay: float = bounded(0.1, ge=0, off="0 switches weight decay off")
    # How near to the average the gradient is taken.
    beta1: float = bounded(0.9, gt=0, lt=1)
    beta2: float = bounded(0.99, ge=0, lt=1)
    eps: float = bounded(1e-8, gt=0)


declare(
    OPTIMIZERS,
    AdamConfig,
    AdamWConfig,
    SGDConfig,
    MuonConfig,
    LionConfig,
    AdafactorConfig,
    ScheduleFreeConfig,
)
