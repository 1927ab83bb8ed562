"""Learning rate schedules as plain functions of the step, which return a factor on optimizer.lr.

A schedule takes the step, counted from 0 after warmup, and its number of steps. Only `plateau` depends on validation
losses as well; its memory of them is part of the training state.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

from nanolm.config.scheduler import (
    ChainConfig,
    ConstantConfig,
    CosineConfig,
    CosineRestartsConfig,
    ExponentialConfig,
    InverseSqrtConfig,
    LinearConfig,
    OneCycleConfig,
    PlateauConfig,
    ProductConfig,
    SchedulerConfig,
    StepConfig,
    TrapezoidConfig,
    cooldown_of,
    schedule_parts,
    warmup_of,
)
from nanolm.registry import SCHEDULERS

Memory = dict[str, float]

# Of plateau: the lowest validation loss, the evaluations since, and the factor on lr.
INITIAL_MEMORY: Memory = {"lowest": math.inf, "stalled": 0, "reduction": 1.0}


def factor(step: int, max_steps: int, config: SchedulerConfig, memory: Memory | None = None) -> float:
    """Return the factor on lr for a step, counted from 0: linear warmup, the configured schedule, linear cooldown.

    The schedule sees the steps after warmup as 0 .. max_steps - warmup, rounded down to multiples of
    config.update_every, and its warmup_steps as a number. The cooldown multiplies it.

    Args:
        step: optimizer steps done before this one.
        max_steps: of the run.
        config: the scheduler.
        memory: latest result of `after_evaluation`; None before the first evaluation.
    """
    warmup = warmup_of(config, max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    after_warmup = (step - warmup) // config.update_every * config.update_every
    resolved = dataclasses.replace(config, warmup_steps=warmup)
    scheduled = SCHEDULERS[config.name](after_warmup, max_steps - warmup, resolved)
    cooldown = cooldown_of(config, max_steps)
    steps_left = max_steps - (warmup + after_warmup)
    if cooldown and steps_left < cooldown:
        scheduled *= max(steps_left, 0) / cooldown
    return scheduled * (memory or {}).get("reduction", 1.0)


def after_evaluation(memory: Memory, val_loss: float, config: SchedulerConfig) -> Memory:
    """Return the memory after another exact validation loss, in nats; only plateau remembers anything."""
    if not isinstance(config, PlateauConfig):
        return memory
    lowest, stalled, reduction = (memory.get(key, start) for key, start in INITIAL_MEMORY.items())
    if val_loss < lowest * (1 - config.threshold):
        lowest, stalled = val_loss, 0
    else:
        stalled += 1
    if stalled > config.patience:
        reduction, stalled = max(reduction * config.gamma, config.final_fraction), 0
    return {"lowest": lowest, "stalled": stalled, "reduction": reduction}


@SCHEDULERS.register("constant")
def constant(step: int, max_steps: int, config: ConstantConfig) -> float:
    """Return config.fraction at every step."""
    return config.fraction


@SCHEDULERS.register("linear")
def linear(step: int, max_steps: int, config: LinearConfig) -> float:
    """Decay linearly from 1 to final_fraction."""
    return _line(step / max_steps, config.final_fraction)


@SCHEDULERS.register("cosine")
def cosine(step: int, max_steps: int, config: CosineConfig) -> float:
    """Decay from 1 to final_fraction as half a cosine (Loshchilov and Hutter 2017, SGDR, without restarts)."""
    return _half_cosine(step / max_steps, 1.0, config.final_fraction)


@SCHEDULERS.register("cosine_restarts")
def cosine_restarts(step: int, max_steps: int, config: CosineRestartsConfig) -> float:
    """Decay from 1 to final_fraction repeatedly, as half cosines (Loshchilov and Hutter 2017, SGDR, equation 5)."""
    period = max(max_steps // 4, 1) if config.period is None else config.period
    if config.period_multiplier == 1:
        step %= period
    while step >= period:
        step -= period
        period *= config.period_multiplier
    return _half_cosine(step / period, 1.0, config.final_fraction)


@SCHEDULERS.register("step")
def step_decay(step: int, max_steps: int, config: StepConfig) -> float:
    """Multiply by gamma every step_size steps."""
    step_size = max(max_steps // 3, 1) if config.step_size is None else config.step_size
    return config.gamma ** (step // step_size)


@SCHEDULERS.register("exponential")
def exponential(step: int, max_steps: int, config: ExponentialConfig) -> float:
    """Decay exponentially from 1 to final_fraction."""
    return config.final_fraction ** min(step / max_steps, 1.0)


@SCHEDULERS.register("inverse_sqrt")
def inverse_sqrt(step: int, max_steps: int, config: InverseSqrtConfig) -> float:
    """Decay as min(n / w, sqrt(w / n)) for the n-th update (Vaswani et al. 2017, section 5.3).

    The factor is 1 at the peak w, the update after warmup.
    """
    assert config.warmup_steps is not None
    peak = config.warmup_steps + 1
    return math.sqrt(peak / (step + peak))


@SCHEDULERS.register("trapezoid")
def trapezoid(step: int, max_steps: int, config: TrapezoidConfig) -> float:
    """Stay at 1, then decay linearly over the last decay_fraction of the steps (Hu et al. 2024, MiniCPM, 4.2)."""
    decay_steps = config.decay_fraction * max_steps
    if step <= max_steps - decay_steps:
        return 1.0
    return _line((step - max_steps + decay_steps) / decay_steps, config.final_fraction)


@SCHEDULERS.register("one_cycle")
def one_cycle(step: int, max_steps: int, config: OneCycleConfig) -> float:
    """Rise and then decay as half cosines (Smith and Topin 2018); the last step has final_fraction."""
    last = max_steps - 1
    peak = min(max(config.rise_fraction * max_steps - 1, 0.0), last)
    if step < peak:
        return _half_cosine(step / peak, config.initial_fraction, 1.0)
    return _half_cosine((step - peak) / max(last - peak, 1), 1.0, config.final_fraction)


@SCHEDULERS.register("plateau")
def plateau(step: int, max_steps: int, config: PlateauConfig) -> float:
    """Return 1: lr is reduced by the memory of evaluations (`after_evaluation`)."""
    return 1.0


@SCHEDULERS.register("product")
def product(step: int, max_steps: int, config: ProductConfig) -> float:
    """Multiply the parts, each computed by its own formula.

    This differs from chaining PyTorch's schedulers, of which some overwrite lr instead of multiplying it:
    CosineAnnealingWarmRestarts discards the reductions of StepLR.
    """
    return math.prod(SCHEDULERS[part.name](step, max_steps, part) for part in schedule_parts(config))


@SCHEDULERS.register("chain")
def chain(step: int, max_steps: int, config: ChainConfig) -> float:
    """Run the parts one after another; each sees its own step and its own number of steps."""
    assert config.warmup_steps is not None
    starts = [0, *(boundary - config.warmup_steps for boundary in config.boundaries)]
    number = bisect.bisect_right(starts, step) - 1
    end = starts[number + 1] if number + 1 < len(starts) else max_steps
    part = schedule_parts(config)[number]
    return SCHEDULERS[part.name](step - starts[number], end - starts[number], part)


def corners(max_steps: int, config: SchedulerConfig) -> Iterator[int]:
    """Yield the steps where the lr curve has a corner, a jump or a peak, which a plot of samples would miss.

    There may be many, some of them outside 0 .. max_steps - 1. Schedules of plugins only have the end of warmup and the
    start of the cooldown.
    """
    warmup = warmup_of(config, max_steps)
    yield from (warmup - 1, warmup, max_steps - cooldown_of(config, max_steps))
    resolved = dataclasses.replace(config, warmup_steps=warmup)
    yield from (warmup + step for step in _corners(max_steps - warmup, resolved))


def _corners(max_steps: int, config: SchedulerConfig) -> Iterator[int]:
    """Yield the corners of a schedule in steps after warmup."""
    return CORNERS[config.name](max_steps, config) if config.name in CORNERS else iter(())


def _corners_of_restarts(max_steps: int, config: CosineRestartsConfig) -> Iterator[int]:
    start = period = max(max_steps // 4, 1) if config.period is None else config.period
    while start < max_steps:
        yield from (start - 1, start)
        period *= config.period_multiplier
        start += period


def _corners_of_steps(max_steps: int, config: StepConfig) -> Iterator[int]:
    step_size = max(max_steps // 3, 1) if config.step_size is None else config.step_size
    return (step for drop in range(step_size, max_steps, step_size) for step in (drop - 1, drop))


def _corners_of_trapezoid(max_steps: int, config: TrapezoidConfig) -> Iterator[int]:
    return iter((int(max_steps - config.decay_fraction * max_steps),))


def _corners_of_one_cycle(max_steps: int, config: OneCycleConfig) -> Iterator[int]:
    # The peak may lie between two steps.
    peak = max(config.rise_fraction * max_steps - 1, 0.0)
    return iter((math.floor(peak), math.ceil(peak)))


def _corners_of_product(max_steps: int, config: ProductConfig) -> Iterator[int]:
    return itertools.chain.from_iterable(_corners(max_steps, part) for part in schedule_parts(config))


def _corners_of_chain(max_steps: int, config: ChainConfig) -> Iterator[int]:
    assert config.warmup_steps is not None
    starts = [0, *(boundary - config.warmup_steps for boundary in config.boundaries), max_steps]
    for start in starts[1:-1]:
        yield from (start - 1, start)
    for part, (start, end) in zip(schedule_parts(config), itertools.pairwise(starts), strict=True):
        yield from (start + step for step in _corners(end - start, part) if step < end - start)


# All other schedules are smooth.
CORNERS: dict[str, Callable[[int, Any], Iterator[int]]] = {
    "cosine_restarts": _corners_of_restarts,
    "step": _corners_of_steps,
    "trapezoid": _corners_of_trapezoid,
    "one_cycle": _corners_of_one_cycle,
    "product": _corners_of_product,
    "chain": _corners_of_chain,
}


def _line(progress: float, end: float) -> float:
    """Interpolate linearly from 1 to end while progress goes from 0 to 1."""
    return 1.0 + (end - 1.0) * min(progress, 1.0)


def _half_cosine(progress: float, start: float, end: float) -> float:
    """Interpolate from start to end as half a cosine while progress goes from 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
