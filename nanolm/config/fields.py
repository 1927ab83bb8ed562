"""Declare a setting: its default, bounds, documentation and role, on the field of a dataclass."""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nanolm.errors import NanolmError, SettingsError
from nanolm.registry import Registry

# The value of a setting without a default. OmegaConf uses the same string for a missing value.
MISSING: Any = "???"

# Each bound of a number as a function, a sign and words.
BOUNDS = {
    "ge": (operator.ge, ">=", "at least"),
    "gt": (operator.gt, ">", "more than"),
    "le": (operator.le, "<=", "at most"),
    "lt": (operator.lt, "<", "less than"),
}

# Integers must be smaller than this in magnitude, to fit into 64 bits.
LARGEST = 2**63


class Role(enum.Enum):
    """What a setting is for. nanolm.config.roles derives from it what may change on resume and what is compared."""

    # Decides the numbers that a run computes.
    experiment = "experiment"
    # Where and how a run is computed and stored.
    runtime = "runtime"
    # What is logged and shown.
    reporting = "reporting"


class Trait(enum.Enum):
    """Further facts about a setting that a rule needs, in addition to its role."""

    # A runtime setting that changes results, but only by floating-point rounding.
    rounding = "rounding"
    # How long a run trains or when it is evaluated.
    horizon = "horizon"
    # Number of parameters or tokens, or random variation: what a scaling law relates to the loss.
    scale = "scale"
    # Text or tokens that losses are measured on: losses per token with different values are not comparable.
    loss_unit = "loss_unit"
    # What evaluating a checkpoint depends on: the model, its tokens and the validation text.
    evaluation = "evaluation"
    # What the batch of a seed and a step depends on, in addition to the tokens.
    batches = "batches"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Facts about a setting, stored in its field's metadata.

    Attributes:
        doc: documentation, in full sentences, with the unit and the meaning of null.
        role: what it is for.
        traits: further facts that a rule needs.
        bounds: limits of a number by the names in BOUNDS.
        off: the value that disables the setting, with an explanation, for hints: "null disables clipping".
            {trainer.max_steps} is replaced by the value of that setting.
        is_path: a path on the command line needs no quotes, and a leading ~/ is the home folder.
        in_context: a number of positions, at most size.context_length.
        switch: of a nested dataclass, its setting that is null when the others have no effect. They are no part of a
            run's identity then.
    """

    doc: str = ""
    role: Role = Role.experiment
    traits: tuple[Trait, ...] = ()
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    off: str = ""
    is_path: bool = False
    in_context: bool = False
    switch: str = ""


_UNDECLARED = Setting()


def setting(default: Any = MISSING, *, doc: str, default_factory: Callable[[], Any] | None = None, **facts: Any) -> Any:
    """Declare a setting as the field of a dataclass.

    Args:
        default: without one, the user must give a value.
        doc: documentation, as in Setting.
        default_factory: makes the default, for lists and nested dataclasses.
        facts: the other attributes of Setting, its bounds as ge=, gt=, le= and lt=.
    """
    bounds = {name: facts.pop(name) for name in BOUNDS if name in facts}
    metadata = {"setting": Setting(doc, bounds=bounds, **facts)}
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def setting_of(field: dataclasses.Field[Any]) -> Setting:
    """Return the facts about a setting; those of an undeclared one, as in a plugin's dataclass, are the defaults."""
    return field.metadata.get("setting", _UNDECLARED)


class Choice(enum.Enum):
    """Values of a setting, each with its documentation: `name = "name", "What it does."`."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Choice:
        """Create a member with a documentation."""
        member = object.__new__(cls)
        member._value_ = value
        member.doc = doc
        return member


def outside_bounds(config: Any, prefix: str = "") -> Iterator[NanolmError]:
    """Find every number that is out of its range or not finite."""
    for key, field, value in leaves(config, prefix):
        declared = setting_of(field)
        for place, number in _numbers(key, value):
            if violated := _violated(number, declared.bounds):
                hint = off_hint(key, declared.off, vars(config))
                yield SettingsError(f"{place} is {number}, and must be {violated}", where=key, hint=hint)


def off_hint(key: str, off: str, settings: Mapping[Any, Any]) -> str:
    """Return the hint how to disable a setting; an empty string if that is not possible.

    Args:
        off: as in Setting.
        settings: the groups of all settings, by name.
    """
    if not off:
        return ""
    # The budget may be in another unit than steps; any large interval has no end before it.
    return f"{key}={off.format_map(settings)}".replace("None (trainer.max_steps)", "1000000000")


def _numbers(key: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """The numbers in a value, and in the lists and mappings in it, each with its place."""
    if isinstance(value, int | float):
        yield key, value
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _numbers(f"{key}[{at}]", item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(f"{key}.{name}", item)


def _violated(number: int | float, bounds: Mapping[str, float]) -> str:
    """The conditions that a number violates; an empty string if there are none."""
    if isinstance(number, float) and not math.isfinite(number):
        return "a finite number"
    if abs(number) >= LARGEST and isinstance(number, int):
        return "less than 2**63 in size"
    limits = [(*BOUNDS[name], limit) for name, limit in bounds.items()]
    return " and ".join(f"{words} {limit}" for holds, _, words, limit in limits if not holds(number, limit))


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Iterate over the settings of a dataclass and of those nested in it: dotted key, field and value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, field, value


def switched_off(config: Any, prefix: str = "") -> Iterator[str]:
    """Iterate over the nested dataclasses whose switch is null: their dotted keys, each with a dot at its end."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{prefix}{field.name}."
        if dataclasses.is_dataclass(value):
            switch = setting_of(field).switch
            if switch and getattr(value, switch) is None:
                yield key
            else:
                yield from switched_off(value, key)


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows: int and NoneType for `int | None`."""
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def enum_of(kinds: Iterable[Any]) -> type[enum.Enum] | None:
    """Return the enum among the types that an annotation allows."""
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)), None)


def plain(value: Any) -> Any:
    """Convert an enum, or those in a list, to its name, as in JSON and YAML; other values are returned unchanged."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.name if isinstance(value, enum.Enum) else value


def flat(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as {dotted key: plain value}."""
    return {key: plain(value) for key, _, value in leaves(config)}


def flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the values in nested dicts: dotted key and value. An empty dict is a value."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def declare(registry: Registry, base: type[Any]) -> None:
    """Register the built-in options of a group: the subclasses of its base schema that have a name.

    A plugin's schema is registered by its decorator.
    """
    registry.base = base
    schemas = base.__subclasses__()
    # The list grows by the subclasses of the subclasses.
    for schema in schemas:
        if "name" in vars(schema):
            registry.schemas[schema.name] = schema
        schemas += schema.__subclasses__()
