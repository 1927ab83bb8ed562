"""Learning rate as a plain function of the step: a factor on optimizer.lr."""

from __future__ import annotations

import math

from nanolm.config import ConstantConfig, CosineConfig, SchedulerConfig
from nanolm.registry import SCHEDULERS


def factor(step: int, max_steps: int, config: SchedulerConfig) -> float:
    """The factor on lr for the update number `step`, counted from 0: warmup first, then the schedule that is named.

    The schedule sees the steps after warmup as 0 .. max_steps - warmup.
    """
    warmup = max_steps // 20 if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULERS[config.name](step - warmup, max_steps - warmup, config)


@SCHEDULERS.register("constant")
def constant(step: int, max_steps: int, config: ConstantConfig) -> float:
    """1."""
    return 1.0


@SCHEDULERS.register("cosine")
def cosine(step: int, max_steps: int, config: CosineConfig) -> float:
    """Half a cosine from 1 to final_fraction (Loshchilov and Hutter 2017, SGDR, without restarts)."""
    progress = min(step / max_steps, 1.0)
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))
