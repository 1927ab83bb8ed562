"""Strings with a literal `${`, which OmegaConf reads from `\\${`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_DOLLAR_BRACE = re.compile(r"(\\*)\$\{")


def escape(text: str) -> str:
    """Escape `${`, so that OmegaConf reads the string as it stands."""
    return _DOLLAR_BRACE.sub(lambda match: match[1] * 2 + "\\${", text)


def unescape(text: str) -> str:
    """Undo `escape`."""
    return _DOLLAR_BRACE.sub(lambda match: match[1][: len(match[1]) // 2] + "${", text)


def has_interpolation(text: str) -> bool:
    """Whether a `${` in the string is not escaped."""
    return any(len(match[1]) % 2 == 0 for match in _DOLLAR_BRACE.finditer(text))


def map_strings(change: Callable[[str], str], value: Any) -> Any:
    """A copy of plain data (dicts, lists and scalars) with every string value changed; keys stay as they are."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_strings(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(change, item) for item in value]
    return value
