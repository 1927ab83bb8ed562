"""How a gradient moves the weights."""

from __future__ import annotations

import dataclasses

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import OPTIMIZERS

# What parameters are told apart by: matrices of linear layers (the one called head apart), tables of embeddings, norms,
# biases, and what is none of these.
PARAMETER_GROUPS = ("hidden", "head", "embedding", "norm", "bias", "other")

# Groups that weight decay reaches.
DECAYED_GROUPS = ("hidden", "head")


@dataclasses.dataclass
class OptimizerConfig:
    """What every optimizer has. Weight decay reaches matrices; embeddings, norms and biases have none."""

    name: str = MISSING
    lr: float = bounded(2e-3, gt=0)
    weight_decay: float = bounded(0.0, ge=0)
    # lr of a group of parameters is so many times lr, as in {embedding: 0.5}.
    lr_multipliers: dict[str, float] = dataclasses.field(default_factory=dict, metadata={"bounds": {"ge": 0}})


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
    weight_decay: float = bounded(0.1, ge=0)
    beta2: float = bounded(0.99, ge=0, lt=1)


@dataclasses.dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = bounded(0.1, gt=0)
    momentum: float = bounded(0.9, ge=0, lt=1)


@dataclasses.dataclass
class MuonConfig(AdamWConfig):
    """Muon for hidden matrices (Jordan et al. 2024), AdamW with its own settings for all else; one lr serves both."""

    name: str = "muon"
    momentum: float = bounded(0.95, ge=0, lt=1)
    # Momentum goes in a line from initial_momentum to momentum.
    initial_momentum: float = bounded(0.85, ge=0, lt=1)
    momentum_warmup_steps: int = bounded(300, ge=0)
    newton_schulz_steps: int = bounded(5, ge=1)


@dataclasses.dataclass
class LionConfig(OptimizerConfig):
    """Lion (Chen et al. 2023): the sign of a momentum. It wants a smaller lr than AdamW and a larger weight decay."""

    name: str = "lion"
    lr: float = bounded(3e-4, gt=0)
    weight_decay: float = bounded(0.5, ge=0)
    beta1: float = bounded(0.9, ge=0, lt=1)
    beta2: float = bounded(0.99, ge=0, lt=1)


@dataclasses.dataclass
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018): a second moment by rows and columns; lr is relative to a tensor's scale."""

    name: str = "adafactor"
    lr: float = bounded(0.05, gt=0)
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
    weight_decay: float = bounded(0.1, ge=0)
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
