"""Optimizers and their hyperparameters."""

from __future__ import annotations

import dataclasses
from functools import partial

from nanolm.config.fields import MISSING, Choice, declare, setting
from nanolm.registry import OPTIMIZERS

# Groups of parameters with weight decay.
DECAYED_GROUPS = ("hidden", "head")


@dataclasses.dataclass
class LrMultipliers:
    """Factors on lr for groups of parameters."""

    hidden: float = setting(1.0, doc="Weight matrices of linear and recurrent layers.", ge=0)
    head: float = setting(1.0, doc="Weight matrix of the head, unless it is tied to the embedding.", ge=0)
    embedding: float = setting(1.0, doc="Embedding tables.", ge=0)
    norm: float = setting(1.0, doc="Parameters of normalization layers.", ge=0)
    bias: float = setting(1.0, doc="Biases.", ge=0)
    other: float = setting(1.0, doc="All other parameters.", ge=0)


# Settings of several optimizers, with different defaults.
_lr = partial(setting, doc="Peak learning rate; the scheduler multiplies it by a factor.", gt=0)
_weight_decay = partial(
    setting,
    doc="Weight decay of matrices; embeddings, norms and biases have none.",
    ge=0,
    off="0 disables weight decay",
)
_beta1 = partial(setting, doc="Decay rate of the first moment of the gradient.", ge=0, lt=1)
_beta2 = partial(setting, doc="Decay rate of the second moment of the gradient.", ge=0, lt=1)
_eps = partial(setting, doc="Added to the root of the second moment, against division by zero.", gt=0)
_momentum = partial(setting, doc="Momentum.", ge=0, lt=1, off="0 disables momentum")


class LrScaling(Choice):
    """How lr depends on the width of the model."""

    auto = (
        "auto",
        "`width` for transformers with initialization=zero_projections, as in model=gpt, if the optimizer has a rule; "
        "`none` otherwise.",
    )
    none = "none", "lr is the same for all widths."
    width = (
        "width",
        "lr is that of size.d_model = 128. For other widths it is multiplied by 128 / d_model in head and hidden "
        "matrices, but by its root in the hidden matrices of muon and adafactor (Yang et al. 2022, table 8).",
    )


@dataclasses.dataclass
class OptimizerConfig:
    """Settings of every optimizer."""

    name: str = MISSING
    lr: float = _lr(2e-3)
    weight_decay: float = _weight_decay(0.0)
    decay_embeddings: bool = setting(False, doc="Apply weight decay to embedding tables as well.")
    lr_scaling: LrScaling = setting(LrScaling.auto, doc="How lr depends on the width of the model.")
    lr_multipliers: LrMultipliers = setting(default_factory=LrMultipliers, doc="Factors on lr by parameter group.")


@dataclasses.dataclass
class AdamConfig(OptimizerConfig):
    """Adam (Kingma and Ba 2015). Weight decay is L2 regularization: it is added to the gradient."""

    name: str = "adam"
    beta1: float = _beta1(0.9)
    beta2: float = _beta2(0.999)
    eps: float = _eps(1e-8)


@dataclasses.dataclass
class AdamWConfig(AdamConfig):
    """AdamW (Loshchilov and Hutter 2019): Adam with decoupled weight decay."""

    name: str = "adamw"
    weight_decay: float = _weight_decay(0.1)
    beta2: float = _beta2(0.99)


@dataclasses.dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with momentum."""

    name: str = "sgd"
    lr: float = _lr(0.1)
    momentum: float = _momentum(0.9)


class NewtonSchulz(Choice):
    """The polynomials of Muon's Newton-Schulz iterations."""

    quintic = "quintic", "The same quintic in every iteration (Jordan et al. 2024)."
    polar_express = (
        "polar_express",
        "The best quintic for each iteration, which needs fewer of them (Amsel et al. 2025).",
    )


@dataclasses.dataclass
class MuonConfig(AdamWConfig):
    """Muon for hidden matrices (Jordan et al. 2024) and AdamW for all other parameters, with the same lr."""

    name: str = "muon"
    lr: float = _lr(0.01)
    momentum: float = _momentum(0.95)
    initial_momentum: float = setting(
        0.85, doc="Momentum at the first step; it rises linearly to `momentum`.", ge=0, lt=1
    )
    momentum_warmup_steps: int = setting(
        300, doc="Steps until the momentum reaches its final value.", ge=0, off="0 disables the warmup of the momentum"
    )
    momentum_warmup_fraction: float | None = setting(
        None,
        doc="Share of trainer.max_steps until the momentum reaches its final value, in place of momentum_warmup_steps. "
        "null: momentum_warmup_steps applies.",
        ge=0,
        le=1,
    )
    newton_schulz: NewtonSchulz = setting(
        NewtonSchulz.polar_express, doc="Polynomials of the Newton-Schulz iterations that orthogonalize the momentum."
    )
    newton_schulz_steps: int = setting(
        4, doc="Newton-Schulz iterations: 5 of `quintic` are about as exact as 4 of `polar_express`.", ge=1, le=20
    )
    split_heads: bool = setting(
        True,
        doc="Orthogonalize the query, key, value and output matrix of each attention head separately, which costs less "
        "than whole matrices.",
    )
    orthogonalize_every: int = setting(
        1,
        doc="Orthogonalize in every n-th step. The steps between repeat the last update of the hidden matrices, which "
        "takes memory for one more value per weight.",
        ge=1,
        off="1 orthogonalizes in every step",
    )
    normuon_beta2: float | None = setting(
        None,
        doc="Decay rate of the second moment of each row of the orthogonalized updates, whose root they are divided by "
        "(NorMuon, Li et al. 2025). null disables it.",
        ge=0,
        lt=1,
        off="null disables the normalization of rows",
    )
    cautious_weight_decay: bool = setting(
        False, doc="Apply weight decay only to weights that the update moves towards zero (Chen et al. 2025)."
    )
    scheduled_weight_decay: bool = setting(
        False,
        doc="Multiply weight_decay by the factor of the scheduler, so that the decay per step, lr weight_decay, falls "
        "with its square.",
    )


@dataclasses.dataclass
class LionConfig(OptimizerConfig):
    """Lion (Chen et al. 2023): sign of an interpolated momentum. Needs a smaller lr than AdamW, more weight decay."""

    name: str = "lion"
    lr: float = _lr(1e-3)
    weight_decay: float = _weight_decay(0.2)
    beta1: float = setting(0.9, doc="Weight of the momentum in the update.", ge=0, lt=1)
    beta2: float = setting(0.99, doc="Decay rate of the momentum.", ge=0, lt=1)


@dataclasses.dataclass
class AdafactorConfig(OptimizerConfig):
    """Adafactor (Shazeer and Stern 2018): a factored second moment and no first moment.

    lr is relative to the root mean square of each tensor, and at most 1 / sqrt(step).
    """

    name: str = "adafactor"
    lr: float = _lr(0.1)
    beta2_decay: float = setting(-0.8, doc="Decay rate of the second moment: 1 - step^beta2_decay.", le=0)
    min_scale: float = setting(
        1e-3, doc="Lower bound on the root mean square of a tensor that lr is relative to.", gt=0
    )
    clip_threshold: float = setting(1.0, doc="Upper bound on the root mean square of an update.", ge=1)


@dataclasses.dataclass
class ScheduleFreeConfig(OptimizerConfig):
    """Schedule-free AdamW (Defazio et al. 2024), for use with scheduler=constant.

    The averaged weights are the ones that are evaluated, sampled from and saved.
    """

    name: str = "schedule_free"
    lr: float = _lr(5e-3)
    weight_decay: float = _weight_decay(0.1)
    beta1: float = setting(
        0.9, doc="Interpolation between the iterate (0) and the average (1) for the gradient.", gt=0, lt=1
    )
    beta2: float = _beta2(0.99)
    eps: float = _eps(1e-8)


declare(OPTIMIZERS, OptimizerConfig)
