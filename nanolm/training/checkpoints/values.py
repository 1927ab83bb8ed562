"""Checks of values that were read from a checkpoint, which may be of any type and size."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from nanolm.checksummed import is_sha256, is_size
from nanolm.json_text import is_finite_number

KINDS: dict[str, Callable[[Any], bool]] = {
    "a whole number from 0 to 2^63": is_size,
    "a number": lambda value: is_finite_number(value) or (isinstance(value, float) and value == value),
    "a finite number": is_finite_number,
    "a finite number or null": lambda value: value is None or is_finite_number(value),
    "a SHA-256": is_sha256,
    "a text": lambda value: isinstance(value, str),
    "a list": lambda value: isinstance(value, list),
    "a table": lambda value: isinstance(value, dict),
    "a table or null": lambda value: value is None or isinstance(value, dict),
    "a tensor": lambda value: isinstance(value, torch.Tensor),
}
COUNT, NUMBER, FINITE, FINITE_OR_NULL, SHA256, TEXT, LIST, TABLE, TABLE_OR_NULL, TENSOR = KINDS


def require(value: Any, kind: str, name: str) -> None:
    """Refuse a value that is not of a kind in KINDS.

    Raises:
        ValueError: names the value.
    """
    if not KINDS[kind](value):
        raise ValueError(f"{name} is {reprlib.repr(value)}, not {kind}")


def require_table(value: Any, kinds: Mapping[str, str], name: str = "", optional: Collection[str] = ()) -> None:
    """Refuse a table with another key than those of `kinds`, without one of them, or with a value of another kind.

    Args:
        value: the table.
        kinds: the kind of each key's value.
        name: of the table, for the error.
        optional: keys that may be missing.

    Raises:
        ValueError: names the first key that is wrong.
    """
    require(value, TABLE, name or "it")
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in kinds:
            raise ValueError(f"{prefix}{reprlib.repr(key)} is unknown")
    for key, kind in kinds.items():
        if key in value:
            require(value[key], kind, f"{prefix}{key}")
        elif key not in optional:
            raise ValueError(f"{prefix}{key} is missing")


def require_tensor(value: Any, shape: tuple[int, ...], is_floating: bool, name: str) -> None:
    """Refuse anything but a tensor of a shape, of floating-point numbers or of integers.

    Raises:
        ValueError: names the value.
    """
    require(value, TENSOR, name)
    if tuple(value.shape) != shape or value.dtype.is_floating_point != is_floating:
        wanted = "floating-point numbers" if is_floating else "integers"
        raise ValueError(f"{name} is {value.dtype} of shape {list(value.shape)}, not {wanted} of shape {list(shape)}")
