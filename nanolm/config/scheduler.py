"""Learning rate schedules."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

from nanolm.config.fields import MISSING, declare, setting
from nanolm.config.fractions import steps_until
from nanolm.registry import SCHEDULERS


@dataclasses.dataclass
class SchedulerConfig:
    """Settings of every schedule: a factor on optimizer.lr as a function of the step."""

    # Whether validation losses change the schedule: then trainer.eval_every belongs to the experiment.
    reads_losses: ClassVar[bool] = False

    name: str = MISSING
    warmup_steps: int | None = setting(
        None,
        doc="Steps in which lr rises linearly from 0. null: a twentieth of trainer.max_steps.",
        ge=0,
        off="0 disables warmup",
    )
    warmup_fraction: float | None = setting(
        None,
        doc="Warmup as a fraction of trainer.max_steps, in place of warmup_steps. null: warmup_steps.",
        ge=0,
        lt=1,
        off="null uses scheduler.warmup_steps",
    )
    cooldown_fraction: float = setting(
        0.0,
        doc="Fraction of trainer.max_steps, at the end of the run, over which the lr of the schedule is multiplied by "
        "a factor that falls linearly to 0.",
        ge=0,
        le=1,
        off="0 disables the cooldown",
    )
    update_every: int = setting(
        1,
        doc="Steps between two changes of lr after the warmup; the steps of an epoch give a schedule by epochs.",
        ge=1,
        off="1 changes lr at every step",
    )


_final_fraction = partial(setting, doc="Final lr as a fraction of lr.", le=1)


@dataclasses.dataclass
class ConstantConfig(SchedulerConfig):
    """Constant learning rate after the warmup."""

    name: str = "constant"
    fraction: float = setting(1.0, doc="Constant factor on lr.", gt=0)


@dataclasses.dataclass
class LinearConfig(SchedulerConfig):
    """Linear decay from lr to `final_fraction` * lr at trainer.max_steps."""

    name: str = "linear"
    final_fraction: float = _final_fraction(0.0, ge=0)


@dataclasses.dataclass
class CosineConfig(SchedulerConfig):
    """Cosine decay from lr to `final_fraction` * lr at trainer.max_steps (Loshchilov and Hutter 2017)."""

    name: str = "cosine"
    final_fraction: float = _final_fraction(0.1, ge=0)


@dataclasses.dataclass
class CosineRestartsConfig(SchedulerConfig):
    """Cosine decay with warm restarts (SGDR, Loshchilov and Hutter 2017)."""

    name: str = "cosine_restarts"
    period: int | None = setting(
        None,
        doc="Steps of the first decay. null: a quarter of the steps after the warmup.",
        ge=1,
        off="null takes a quarter of the steps; scheduler=cosine never restarts",
    )
    period_multiplier: int = setting(1, doc="Length of each decay as a multiple of the one before.", ge=1)
    final_fraction: float = _final_fraction(0.0, ge=0)


@dataclasses.dataclass
class StepConfig(SchedulerConfig):
    """Multiply lr by `gamma` every `step_size` steps."""

    name: str = "step"
    step_size: int | None = setting(
        None,
        doc="Steps between two multiplications. null: a third of the steps after the warmup.",
        ge=1,
        off="null takes a third of the steps; scheduler=constant keeps lr constant",
    )
    gamma: float = setting(0.1, doc="Factor.", gt=0, le=1)


@dataclasses.dataclass
class ExponentialConfig(SchedulerConfig):
    """Exponential decay from lr to `final_fraction` * lr at trainer.max_steps."""

    name: str = "exponential"
    final_fraction: float = _final_fraction(0.01, gt=0)


@dataclasses.dataclass
class InverseSqrtConfig(SchedulerConfig):
    """Decay with the inverse square root of the step, counted from the start of the warmup (Vaswani et al. 2017)."""

    name: str = "inverse_sqrt"


@dataclasses.dataclass
class TrapezoidConfig(SchedulerConfig):
    """Warmup-stable-decay: constant lr, then linear decay to `final_fraction` * lr (Hu et al. 2024)."""

    name: str = "trapezoid"
    decay_fraction: float = setting(
        0.2, doc="Length of the decay as a fraction of the steps after the warmup.", ge=0, le=1
    )
    final_fraction: float = _final_fraction(0.0, ge=0)


@dataclasses.dataclass
class OneCycleConfig(SchedulerConfig):
    """Cosine from `initial_fraction` * lr up to lr, then cosine decay to almost zero (Smith and Topin 2018).

    It has no warmup by default, since it rises itself.
    """

    name: str = "one_cycle"
    warmup_steps: int | None = setting(
        0,
        doc="Steps in which lr rises linearly from 0, before the cycle. null: a twentieth of trainer.max_steps.",
        ge=0,
        off="0 disables warmup",
    )
    rise_fraction: float = setting(0.3, doc="Length of the rise as a fraction of the steps.", gt=0, lt=1)
    initial_fraction: float = setting(0.04, doc="Initial lr as a fraction of lr.", gt=0, le=1)
    final_fraction: float = _final_fraction(4e-6, ge=0)


@dataclasses.dataclass
class PlateauConfig(SchedulerConfig):
    """Multiply lr by `gamma` when the validation loss has not improved for more than `patience` evaluations.

    This schedule alone depends on more than the step: it uses the exact validation loss, every trainer.eval_every
    steps.
    """

    reads_losses: ClassVar[bool] = True

    name: str = "plateau"
    gamma: float = setting(0.5, doc="Factor.", gt=0, lt=1)
    patience: int = setting(2, doc="Evaluations without improvement that are tolerated.", ge=0)
    threshold: float = setting(
        1e-4, doc="Smallest decrease of the lowest loss that counts as an improvement, as a fraction of it.", ge=0, lt=1
    )
    final_fraction: float = setting(0.01, doc="Lower bound of lr, as a fraction of lr.", ge=0, le=1)


@dataclasses.dataclass
class PartsConfig(SchedulerConfig):
    """Settings of schedules that are made of others."""

    parts: list[Any] = setting(
        doc="The schedules, each by name or with settings: [{name: step, gamma: 0.95}, cosine_restarts]. "
        "The warmup, the cooldown and update_every are those of the whole."
    )


@dataclasses.dataclass
class ProductConfig(PartsConfig):
    """The product of several schedules, each over all steps after the warmup."""

    name: str = "product"


@dataclasses.dataclass
class ChainConfig(PartsConfig):
    """Several schedules, one after another. Each counts its own steps from 0."""

    name: str = "chain"
    boundaries: list[int] = setting(doc="Steps at which the second schedule, the third, ... starts.")


declare(SCHEDULERS, SchedulerConfig)

# Schedules that need the whole run, so that they cannot be a part of another.
NOT_A_PART = {PlateauConfig.name, ProductConfig.name, ChainConfig.name}


def warmup_of(config: SchedulerConfig, max_steps: int) -> int:
    """Return the number of warmup steps."""
    if config.warmup_fraction is not None:
        return steps_until(config.warmup_fraction, max_steps)
    return max_steps // 20 if config.warmup_steps is None else config.warmup_steps


def cooldown_of(config: SchedulerConfig, max_steps: int) -> int:
    """Return the number of steps of the cooldown."""
    return steps_until(config.cooldown_fraction, max_steps)


def schedule_parts(config: PartsConfig) -> list[SchedulerConfig]:
    """Return the settings of each part of a checked config, with the warmup of the whole."""
    written = [{"name": part} if isinstance(part, str) else part for part in config.parts]
    return [SCHEDULERS.schema(part["name"])(**{**part, "warmup_steps": config.warmup_steps}) for part in written]
