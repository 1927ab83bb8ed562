"""How the learning rate goes with the steps."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import SCHEDULERS


@dataclasses.dataclass
class SchedulerConfig:
    """What every schedule has: lr rises linearly over `warmup_steps` (null: a twentieth of trainer.max_steps)."""

    name: str = MISSING
    warmup_steps: int | None = bounded(None, ge=0, off="0 switches warmup off")
    # After the warmup lr changes once in so many steps: those of an epoch make a schedule that goes by epochs.
    update_every: int = bounded(1, ge=1, off="1 changes lr at every step")


@dataclasses.dataclass
class ConstantConfig(SchedulerConfig):
    """lr stays at a fraction of itself."""

    name: str = "constant"
    fraction: float = bounded(1.0, gt=0)


@dataclasses.dataclass
class LinearConfig(SchedulerConfig):
    """A straight line from lr to `final_fraction` of it at trainer.max_steps."""

    name: str = "linear"
    final_fraction: float = bounded(0.0, ge=0, le=1)


@dataclasses.dataclass
class CosineConfig(SchedulerConfig):
    """Half a cosine from lr to `final_fraction` of it at trainer.max_steps (Loshchilov and Hutter 2017)."""

    name: str = "cosine"
    final_fraction: float = bounded(0.1, ge=0, le=1)


@dataclasses.dataclass
class CosineRestartsConfig(SchedulerConfig):
    """Half a cosine from lr to `final_fraction` of it, again and again (SGDR, Loshchilov and Hutter 2017)."""

    name: str = "cosine_restarts"
    # Steps of the first half cosine; null: a quarter of those after the warmup.
    period: int | None = bounded(None, ge=1, off="null takes a quarter of the steps; scheduler=cosine never restarts")
    # Each half cosine is so many times as long as the one before.
    period_multiplier: int = bounded(1, ge=1)
    final_fraction: float = bounded(0.0, ge=0, le=1)


@dataclasses.dataclass
class StepConfig(SchedulerConfig):
    """lr is multiplied by `gamma` every `step_size` steps."""

    name: str = "step"
    # null: a third of the steps after the warmup.
    step_size: int | None = bounded(
        None, ge=1, off="null takes a third of the steps; scheduler=constant leaves lr as it is"
    )
    gamma: float = bounded(0.1, gt=0, le=1)


@dataclasses.dataclass
class ExponentialConfig(SchedulerConfig):
    """lr is multiplied by the same number at every step, and is `final_fraction` of itself at trainer.max_steps."""

    name: str = "exponential"
    final_fraction: float = bounded(0.01, gt=0, le=1)


@dataclasses.dataclass
class InverseSqrtConfig(SchedulerConfig):
    """lr falls with the square root of the step, warmup counted in (Vaswani et al. 2017, section 5.3)."""

    name: str = "inverse_sqrt"


@dataclasses.dataclass
class TrapezoidConfig(SchedulerConfig):
    """Warmup, stable, decay: lr stays, and at the end goes in a line to `final_fraction` of it (Hu et al. 2024)."""

    name: str = "trapezoid"
    # Of the steps after the warmup.
    decay_fraction: float = bounded(0.2, ge=0, le=1)
    final_fraction: float = bounded(0.0, ge=0, le=1)


@dataclasses.dataclass
class OneCycleConfig(SchedulerConfig):
    """Half a cosine from `initial_fraction` of lr up to it, and another down to almost nothing (Smith and Topin 2018).

    It rises by itself, and has no warmup unless one is given.
    """

    name: str = "one_cycle"
    warmup_steps: int | None = bounded(0, ge=0, off="0 switches warmup off")
    rise_fraction: float = bounded(0.3, gt=0, lt=1)
    initial_fraction: float = bounded(0.04, gt=0, le=1)
    final_fraction: float = bounded(4e-6, ge=0, le=1)


@dataclasses.dataclass
class PlateauConfig(SchedulerConfig):
    """lr is multiplied by `gamma` when the exact validation loss has not fallen for more than `patience` evaluations.

    It alone is no function of the step: trainer.eval_every decides too.
    """

    name: str = "plateau"
    gamma: float = bounded(0.5, gt=0, lt=1)
    patience: int = bounded(2, ge=0)
    # A loss has fallen when it is less than the lowest by this fraction of it.
    threshold: float = bounded(1e-4, ge=0, lt=1)
    final_fraction: float = bounded(0.01, ge=0, le=1)


@dataclasses.dataclass
class PartsConfig(SchedulerConfig):
    """What a schedule has that is made of others.

    A part is the name of a schedule, or its name and settings: [{name: step, gamma: 0.95}, cosine_restarts]. Warmup and
    `every` belong to the whole.
    """

    parts: list[Any] = MISSING


@dataclasses.dataclass
class ProductConfig(PartsConfig):
    """The product of several schedules, each over all steps after the warmup."""

    name: str = "product"


@dataclasses.dataclass
class ChainConfig(PartsConfig):
    """Several schedules, one after another; each sees its own steps, from 0 to its own length."""

    name: str = "chain"
    # The steps of the run at which the second, the third, ... begins.
    boundaries: list[int] = MISSING


declare(
    SCHEDULERS,
    ConstantConfig,
    LinearConfig,
    CosineConfig,
    CosineRestartsConfig,
    StepConfig,
    ExponentialConfig,
    InverseSqrtConfig,
    TrapezoidConfig,
    OneCycleConfig,
    PlateauConfig,
    ProductConfig,
    ChainConfig,
)

# These see the run, and a part sees only its own stretch of it.
NOT_A_PART = {PlateauConfig.name, ProductConfig.name, ChainConfig.name}


def warmup_of(config: SchedulerConfig, max_steps: int) -> int:
    """Steps of the warmup."""
    return max_steps // 20 if config.warmup_steps is None else config.warmup_steps


def schedule_parts(config: PartsConfig) -> list[SchedulerConfig]:
    """The settings of each part, with the warmup of the whole. They must be sound."""
    written = [{"name": part} if isinstance(part, str) else part for part in config.parts]
    return [
        SCHEDULERS.schemas.get(part["name"], SchedulerConfig)(**{**part, "warmup_steps": config.warmup_steps})
        for part in written
    ]
