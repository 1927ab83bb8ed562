"""Dataclass records in JSON files, which may be damaged or come from another version."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from nanolm.json_text import dump_json, is_finite_number
from nanolm.wording import shorten

R = TypeVar("R")
Reader = Callable[[str, Any], Any]

# Larger numbers are not counts of anything, and would not fit NumPy's integers.
MAX_INT = 2**63 - 1
# Every number of a run fits float32 or is a small multiple of one; powers and sums of larger ones would overflow.
MAX_FLOAT = 1e50


def from_json(record: type[R], table: dict[str, Any]) -> R:
    """Build a dataclass instance from a parsed JSON object.

    Unknown keys are ignored. A field that is null or missing takes its default, as does a number that is too large:
    JSON has no infinity.

    Raises:
        ValueError: a field without a default is missing, or a value is of the wrong type.
    """
    readers, values = _readers(record), {}  # type: ignore[arg-type]
    # Most records have few of the fields. None is skipped before and after reading.
    for name, raw in table.items():
        if raw is not None and (read := readers.get(name)) is not None and (value := read(name, raw)) is not None:
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
def _readers(record: type) -> dict[str, Reader]:
    return {name: _reader(hint) for name, hint in typing.get_type_hints(record).items()}


def _reader(hint: Any) -> Reader:
    """The reader of a field: it takes the field's name and value, and returns the value or raises ValueError."""
    if isinstance(hint, types.UnionType):
        (hint,) = (option for option in typing.get_args(hint) if option is not types.NoneType)
    if typing.is_typeddict(hint):
        return functools.partial(_read_table, _readers(hint).get)
    if typing.get_origin(hint) is dict:
        read_item = _reader(typing.get_args(hint)[1])
        return functools.partial(_read_table, lambda key: read_item)
    if typing.get_origin(hint) is list:
        return functools.partial(_read_list, _reader(typing.get_args(hint)[0]))
    return {int: _read_int, float: _read_float, str: _read_str, bool: _read_bool}[hint]


def _read_table(reader_of: Callable[[str], Reader | None], name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(name, value, "a JSON object")
    found = {}
    for key, raw in value.items():
        read = reader_of(key)
        if read is not None and raw is not None and (item := read(f"{name}.{key}", raw)) is not None:
            found[key] = item
    return found


def _read_list(read: Reader, name: str, value: Any) -> list[Any]:
    try:
        return [item for n, raw in enumerate(value) if (item := read(f"{name}[{n}]", raw)) is not None]
    except (TypeError, ValueError) as error:
        raise _wrong(name, value, "a list of JSON objects") from error


def _read_int(name: str, value: Any) -> int:
    if type(value) is int and 0 <= value <= MAX_INT:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise _wrong(name, value, "a whole number")
    if not 0 <= value <= MAX_INT:
        raise _wrong(name, value, f"a whole number from 0 to {MAX_INT}")
    return value


def _read_float(name: str, value: Any) -> float | None:
    if type(value) is float and -MAX_FLOAT < value < MAX_FLOAT:
        return value
    if not is_finite_number(value):
        raise _wrong(name, value, "a number")
    return value if -MAX_FLOAT < value < MAX_FLOAT else None


def _read_str(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "text")
    return value


def _read_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _wrong(name: str, value: Any, wanted: str) -> ValueError:
    return ValueError(f"{shorten(name)} is {shorten(repr(value))}, and must be {wanted}")
