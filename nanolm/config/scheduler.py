"""How the learning rate goes with the steps."""

from __future__ import annotations

import dataclasses

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import SCHEDULERS


@dataclasses.dataclass
class SchedulerConfig:
    """What every schedule has: lr rises linearly over `warmup_steps` (null: a twentieth of trainer.max_steps)."""

    name: str = MISSING
    warmup_steps: int | None = bounded(None, ge=0)


@dataclasses.dataclass
class ConstantConfig(SchedulerConfig):
    """lr stays where the warmup left it."""

    name: str = "constant"


@dataclasses.dataclass
class CosineConfig(SchedulerConfig):
    """Half a cosine from lr to `final_fraction` of it at trainer.max_steps (Loshchilov and Hutter 2017)."""

    name: str = "cosine"
    final_fraction: float = bounded(0.1, ge=0, le=1)


declare(SCHEDULERS, ConstantConfig, CosineConfig)
