"""Check the settings of the learning rate schedule."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.config.budget import budget_of
from nanolm.config.fields import outside_bounds
from nanolm.config.run import Config
from nanolm.config.scheduler import NOT_A_PART, ChainConfig, PartsConfig, SchedulerConfig, cooldown_of, warmup_of
from nanolm.config.wrong_values import describe_type
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.registry import SCHEDULERS


def check_scheduler(config: Config) -> Iterator[NanolmError]:
    """Find a warmup in two units, mistakes in the parts of a schedule, and phases longer than the run.

    The last are found once the number of steps is known.
    """
    scheduler = config.scheduler
    default = next(field.default for field in dataclasses.fields(scheduler) if field.name == "warmup_steps")
    has_two_units = scheduler.warmup_fraction is not None and scheduler.warmup_steps not in (None, default)
    if has_two_units:
        yield SettingsError(
            f"scheduler.warmup_steps ({scheduler.warmup_steps}) and scheduler.warmup_fraction "
            f"({scheduler.warmup_fraction}) are both set",
            where="scheduler.warmup_steps, scheduler.warmup_fraction",
            hint="use one of them: scheduler.warmup_steps=null takes the fraction",
        )
    if config.trainer.max_steps is not None:
        yield from check_phases(config, has_two_units)
    if isinstance(scheduler, PartsConfig):
        if not scheduler.parts:
            yield SettingsError(
                "scheduler.parts is empty",
                where="scheduler.parts",
                hint="give a list of schedules, as in 'scheduler.parts=[{name:step,gamma:0.95},cosine_restarts]'",
            )
        for number, part in enumerate(scheduler.parts):
            yield from _check_part(part, f"scheduler.parts[{number}]")


def check_phases(config: Config, has_two_units: bool = False) -> Iterator[NanolmError]:
    """Find a warmup, a cooldown or parts of a schedule that are longer than the run.

    Args:
        config: of a run whose number of steps is known.
        has_two_units: whether the length of the warmup is ambiguous.
    """
    scheduler, steps = config.scheduler, config.trainer.steps
    budget = budget_of(config.trainer)
    length = f"trainer.max_steps ({steps})" if budget.in_steps else f"the {steps} steps of {budget}"
    if not has_two_units and warmup_of(scheduler, steps) + cooldown_of(scheduler, steps) > steps > warmup_of(
        scheduler, steps
    ):
        yield SettingsError(
            f"the warmup ({warmup_of(scheduler, steps)} steps) and the cooldown ({cooldown_of(scheduler, steps)}) are "
            f"together longer than {length}",
            where="scheduler.warmup_steps, scheduler.cooldown_fraction",
            hint="use a shorter one of them",
        )
    if scheduler.warmup_steps is not None and scheduler.warmup_steps >= steps:
        yield SettingsError(
            f"scheduler.warmup_steps ({scheduler.warmup_steps}) must be less than {length}",
            where=f"scheduler.warmup_steps, trainer.{budget.name}",
            hint="a tenth of the steps or less is usual; null uses a twentieth",
        )
    if isinstance(scheduler, ChainConfig):
        yield from _check_boundaries(scheduler, steps, budget.name)


def _check_part(part: Any, where: str) -> Iterator[NanolmError]:
    allowed = SCHEDULERS.names - NOT_A_PART
    settings = {"name": part} if isinstance(part, str) else part
    name = settings.get("name") if isinstance(settings, dict) else None
    if not isinstance(name, str):
        yield SettingsError(
            f"{where} is {part!r}",
            where=where,
            hint="give the name of a schedule, or its name and settings: {name:step,gamma:0.95}",
        )
    elif name not in SCHEDULERS.names:
        yield SettingsError(f"there is no scheduler {name!r}", where=where, hint=nearest(name, allowed))
    elif name in NOT_A_PART:
        yield SettingsError(
            f"{name} cannot be a part of another schedule",
            where=where,
            hint=f"one of: {', '.join(sorted(allowed))}",
        )
    else:
        yield from _check_settings(SCHEDULERS.schema(name), settings, where)


def _check_settings(schema: type[Any], settings: dict[Any, Any], where: str) -> Iterator[NanolmError]:
    """Find keys, types and values that do not fit the schema of a part."""
    common = {field.name for field in dataclasses.fields(SchedulerConfig)} - {"name"}
    own = {field.name for field in dataclasses.fields(schema)} - common
    typed = OmegaConf.structured(schema)
    for key, value in settings.items():
        if key in common:
            yield SettingsError(
                f"{where}.{key} is set, but it applies only to the whole schedule",
                where=where,
                hint=f"scheduler.{key}={value}",
            )
            continue
        if key not in own:
            yield SettingsError(f"{settings['name']} has no setting {key!r}", where=where, hint=nearest(str(key), own))
            continue
        try:
            typed[key] = value
            fits = typed[key] == value
        except OmegaConfBaseException:
            fits = False
        if not fits:
            wanted = describe_type(typing.get_type_hints(schema)[key])
            yield SettingsError(f"{where}.{key} is {value!r}, and must be {wanted}", where=where)
    yield from outside_bounds(OmegaConf.to_object(typed), f"{where}.")


def _check_boundaries(scheduler: ChainConfig, steps: int, budget: str) -> Iterator[NanolmError]:
    where = "scheduler.boundaries"
    expected = len(scheduler.parts) - 1
    if scheduler.parts and len(scheduler.boundaries) != expected:
        yield SettingsError(
            f"scheduler.boundaries has {len(scheduler.boundaries)} steps for {len(scheduler.parts)} parts",
            where=f"{where}, scheduler.parts",
            hint=f"give {expected}: the steps at which the second part, the third, ... starts",
        )
    warmup = warmup_of(scheduler, steps)
    marks = [warmup, *scheduler.boundaries, steps]
    if any(later <= earlier for earlier, later in itertools.pairwise(marks)):
        yield SettingsError(
            f"scheduler.boundaries {scheduler.boundaries} leave no steps for a part",
            where=f"{where}, scheduler.warmup_steps, trainer.{budget}",
            hint=f"they must increase and be between the warmup ({warmup}) and the number of steps ({steps})",
        )
