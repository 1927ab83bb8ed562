"""What can be wrong with a schedule: its warmup, and the schedules that it is made of."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.config.fields import outside_bounds
from nanolm.config.run import Config
from nanolm.config.scheduler import NOT_A_PART, ChainConfig, PartsConfig, SchedulerConfig, warmup_of
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.registry import SCHEDULERS


def check_scheduler(config: Config) -> Iterator[NanolmError]:
    """What is wrong with config.scheduler, its numbers apart, whose bounds were looked at before."""
    scheduler, steps = config.scheduler, config.trainer.max_steps
    if scheduler.warmup_steps is not None and scheduler.warmup_steps >= steps:
        yield SettingsError(
            f"scheduler.warmup_steps {scheduler.warmup_steps} leaves nothing of trainer.max_steps {steps}",
            where="scheduler.warmup_steps, trainer.max_steps",
            hint="a tenth of max_steps or less is usual; null takes a twentieth",
        )
    if isinstance(scheduler, PartsConfig):
        if not scheduler.parts:
            yield SettingsError(
                "scheduler.parts is empty",
                where="scheduler.parts",
                hint="a list of schedules, as in 'scheduler.parts=[{name:step,gamma:0.95},cosine_restarts]'",
            )
        for number, part in enumerate(scheduler.parts):
            yield from _wrong_in_part(part, f"scheduler.parts[{number}]")
    if isinstance(scheduler, ChainConfig):
        yield from _wrong_in_boundaries(scheduler, steps)


def _wrong_in_part(part: Any, where: str) -> Iterator[NanolmError]:
    known = {*SCHEDULERS.schemas, *SCHEDULERS}
    settings = {"name": part} if isinstance(part, str) else part
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        yield SettingsError(
            f"{where} is {part!r}",
            where=where,
            hint="the name of a schedule, or its name and settings: {name:step,gamma:0.95}",
        )
        return
    name = settings["name"]
    if name not in known:
        yield SettingsError(f"no scheduler is called {name!r}", where=where, hint=nearest(name, known - NOT_A_PART))
        return
    if name in NOT_A_PART:
        yield SettingsError(
            f"{name} cannot be a part of another schedule",
            where=where,
            hint=f"one of: {', '.join(sorted(known - NOT_A_PART))}",
        )
        return
    yield from _wrong_in_settings(SCHEDULERS.schemas.get(name, SchedulerConfig), settings, where)


def _wrong_in_settings(schema: type[Any], settings: dict[Any, Any], where: str) -> Iterator[NanolmError]:
    """What does not fit the dataclass of a part: keys, types, bounds."""
    of_the_whole = {field.name for field in dataclasses.fields(SchedulerConfig)} - {"name"}
    own = {field.name for field in dataclasses.fields(schema)} - of_the_whole
    typed = OmegaConf.structured(schema)
    for key, value in settings.items():
        if key in of_the_whole:
            yield SettingsError(
                f"{where}.{key} is set, and it belongs to the whole", where=where, hint=f"scheduler.{key}={value}"
            )
            continue
        if key not in own:
            yield SettingsError(
                f"there is no setting {key!r} in {settings['name']}", where=where, hint=nearest(str(key), own)
            )
            continue
        try:
            typed[key] = value
            fits = typed[key] == value
        except OmegaConfBaseException:
            fits = False
        if not fits:
            kind = str(next(field.type for field in dataclasses.fields(schema) if field.name == key))
            yield SettingsError(f"{where}.{key} is {value!r}, which is no {kind.replace(' | ', ' or ')}", where=where)
    yield from outside_bounds(OmegaConf.to_object(typed), f"{where}.")


def _wrong_in_boundaries(scheduler: ChainConfig, steps: int) -> Iterator[NanolmError]:
    where = "scheduler.boundaries"
    wanted = len(scheduler.parts) - 1
    if scheduler.parts and len(scheduler.boundaries) != wanted:
        yield SettingsError(
            f"scheduler.boundaries has {len(scheduler.boundaries)} steps for {len(scheduler.parts)} parts",
            where=f"{where}, scheduler.parts",
            hint=f"give {wanted}: the steps at which the second part, the third, ... begins",
        )
    warmup = warmup_of(scheduler, steps)
    marks = [warmup, *scheduler.boundaries, steps]
    if any(later <= earlier for earlier, later in itertools.pairwise(marks)):
        yield SettingsError(
            f"scheduler.boundaries {scheduler.boundaries} leave a part without steps",
            where=f"{where}, scheduler.warmup_steps, trainer.max_steps",
            hint=f"they must grow, from more than the warmup's {warmup} to less than trainer.max_steps {steps}",
        )
