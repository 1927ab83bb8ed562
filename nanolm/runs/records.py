"""Dataclass records in JSON files, which may be damaged or come from another version."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from nanolm.json_text import dump_json, is_finite_number

R = TypeVar("R")


def from_json(record: type[R], table: dict[str, Any]) -> R:
    """Build a dataclass instance from a parsed JSON object.

    Unknown keys are ignored. A value of the wrong type is treated as missing, so its field takes its default.

    Raises:
        ValueError: a field without a default is missing.
    """
    values = {}
    for name, read in _readers(record).items():  # type: ignore[arg-type]
        if (value := read(table.get(name))) is not None:
            values[name] = value
    try:
        return record(**values)
    except TypeError as error:
        # A field without a default has MISSING as both.
        required = [field.name for field in dataclasses.fields(record) if field.default is field.default_factory]  # type: ignore[arg-type]
        raise ValueError(f"it has no {' or '.join(name for name in required if name not in values)}") from error


def encode_row(record: Any) -> bytes:
    """The line of a .jsonl file for a dataclass instance; fields that are None are left out."""
    known = {name: value for name, value in dataclasses.asdict(record).items() if value is not None}
    return (dump_json(known, ensure_ascii=False) + "\n").encode()


@functools.cache
def _readers(record: type) -> dict[str, Callable[[Any], Any]]:
    return {name: _reader(hint) for name, hint in typing.get_type_hints(record).items()}


def _reader(hint: Any) -> Callable[[Any], Any]:
    """The reader of a field: it returns the value, or None for a value of the wrong type."""
    if isinstance(hint, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if hint is Any:
        return lambda value: value
    if typing.get_origin(hint) is dict:
        return functools.partial(_read_table, _reader(typing.get_args(hint)[1]))
    if hint in (str, bool):
        return lambda value: value if isinstance(value, hint) else None
    return {int: _read_int, float: _read_float}[hint]


def _read_table(read_item: Callable[[Any], Any], value: Any) -> dict[str, Any] | None:
    if not isinstance(value, dict):
        return None
    return {name: item for name, raw in value.items() if (item := read_item(raw)) is not None}


def _read_int(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _read_float(value: Any) -> float | None:
    return value if is_finite_number(value) else None
