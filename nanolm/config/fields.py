"""What a setting is: its default, the range of its value, and how settings are walked through."""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING

from nanolm.errors import NanolmError, SettingsError
from nanolm.registry import Registry

BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "more than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}

# Whole numbers are less than this, as in 64 bits.
LARGEST = 2**63


def bounded(default: Any = MISSING, *, off: str = "", **bounds: float) -> Any:
    """A field with a default and the range its value must lie in.

    Args:
        off: the value that switches off what the setting does, with the words behind it, as a hint for values out of
            range: "null switches clipping off". {trainer.max_steps} stands for that setting.
        bounds: ge, gt, le, lt.
    """
    return dataclasses.field(default=default, metadata={"bounds": bounds, "off": off})


def in_context(default: int) -> Any:
    """A count of positions, of a mask: from 1 to size.context_length."""
    return dataclasses.field(default=default, metadata={"bounds": {"ge": 1}, "in_context": True})


def path_field(default: Any = MISSING) -> Any:
    """A field that is a path: on the command line it needs no quotes, and a leading ~/ is the home folder."""
    return dataclasses.field(default=default, metadata={"path": True})


def outside_bounds(config: Any, prefix: str = "") -> Iterator[NanolmError]:
    """Every number that is not in its range, or is not finite."""
    for key, field, value in leaves(config, prefix):
        for place, number in _numbers(key, value):
            if wrong := _wrong_with(number, field.metadata.get("bounds", {})):
                off = field.metadata.get("off", "").format_map(vars(config))
                hint = f"{key}={off}" if off else ""
                yield SettingsError(f"{place} is {number}, and must be {wrong}", where=key, hint=hint)


def _numbers(key: str, value: Any) -> Iterator[tuple[str, int | float]]:
    """The numbers of a value, in lists and tables too, each with its place."""
    if isinstance(value, int | float):
        yield key, value
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            yield from _numbers(f"{key}[{at}]", item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(f"{key}.{name}", item)


def _wrong_with(number: int | float, bounds: dict[str, float]) -> str:
    """What a number must be and is not; an empty string where nothing is wrong with it."""
    if isinstance(number, float) and not math.isfinite(number):
        return "a finite number"
    if abs(number) >= LARGEST and isinstance(number, int):
        return "less than 2**63 in size"
    broken = [
        f"{words} {limit}"
        for bound, limit in bounds.items()
        for holds, words in [BOUNDS[bound]]
        if not holds(number, limit)
    ]
    return " and ".join(broken)


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Every setting of a dataclass and the dataclasses in it: its dotted key, its field, its value."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from leaves(value, f"{key}.")
        else:
            yield key, field, value


def plain(value: Any) -> Any:
    """A value as JSON has it: enums by their name."""
    return value.name if isinstance(value, enum.Enum) else value


def flat(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as {dotted key: plain value}, enums by their name."""
    return {key: plain(value) for key, _, value in leaves(config)}


def declare(registry: Registry, *schemas: type[Any]) -> None:
    """Puts the schemas of built-in options into the table of their group. A plugin's own comes with its decorator."""
    for schema in schemas:
        registry.schemas[schema.name] = schema
