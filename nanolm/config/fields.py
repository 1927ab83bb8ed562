"""What a setting is: its default, the range of its value, and how settings are walked through."""

from __future__ import annotations

import dataclasses
import enum
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


def bounded(default: Any = MISSING, **bounds: float) -> Any:
    """A field with a default and the range its value must lie in: ge, gt, le, lt."""
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def in_context(default: int) -> Any:
    """A count of positions, of a mask: from 1 to size.context_length."""
    return dataclasses.field(default=default, metadata={"bounds": {"ge": 1}, "in_context": True})


def outside_bounds(config: Any, prefix: str = "") -> Iterator[NanolmError]:
    """Every number that is not in its range."""
    for key, field, value in leaves(config, prefix):
        if value is None or isinstance(value, str):
            continue
        for bound, limit in field.metadata.get("bounds", {}).items():
            holds, words = BOUNDS[bound]
            if not holds(value, limit):
                yield SettingsError(f"{key} is {value}, and must be {words} {limit}", where=key)


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


def declare(registry: Registry, *schemas: type[Any]) -> None:
    """Puts the schemas of built-in options into the table of their group. A plugin's own comes with its decorator."""
    for schema in schemas:
        registry.schemas[schema.name] = schema
