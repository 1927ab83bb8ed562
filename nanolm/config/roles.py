"""The rules that follow from the roles and traits of settings: what affects results, what may change on resume."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from nanolm.config.fields import Role, Setting, Trait, setting_of
from nanolm.config.run import SINGLE_SCHEMAS, Config
from nanolm.registry import GROUPS, SCHEDULERS


def affects_results(key: str) -> bool:
    """Whether the value of a setting affects any number that a run computes.

    Args:
        key: dotted, such as trainer.log_every. An unknown one, as of a plugin that is not imported, affects results.
    """
    return role_of(key) is Role.experiment or has_trait(key, Trait.rounding)


def is_resumable(key: str, scheduler: str) -> bool:
    """Whether a run may be resumed with another value of a setting.

    All but experiment settings may change, and how long a run trains and when it is evaluated, unless the schedule
    depends on the evaluations.

    Args:
        key: dotted.
        scheduler: scheduler.name of the run.
    """
    if key == "trainer.eval_every" and SCHEDULERS.schema(scheduler).reads_losses:
        return False
    return role_of(key) is not Role.experiment or has_trait(key, Trait.horizon)


def role_of(key: str) -> Role:
    """Return the role of a setting: that of its group, unless the group's is experiment."""
    return next((one.role for one in _settings(key) if one.role is not Role.experiment), Role.experiment)


def has_trait(key: str, trait: Trait) -> bool:
    """Whether a setting, or the group that it belongs to, has a trait."""
    return any(trait in one.traits for one in _settings(key))


def _settings(key: str) -> list[Setting]:
    """Return the declarations that apply to a key: of its group, and its own in the first option that has it."""
    group, *names = key.split(".")
    options: list[Any] = [SINGLE_SCHEMAS[group]] if group in SINGLE_SCHEMAS else []
    options += GROUPS[group].schemas.values() if group in GROUPS else []
    own = (declared[name] for name in names[:1] for declared in map(_declared, options) if name in declared)
    return [one for one in (_declared(Config).get(group), next(own, None)) if one is not None]


@functools.cache
def _declared(schema: Any) -> dict[str, Setting]:
    return {field.name: setting_of(field) for field in dataclasses.fields(schema)}
