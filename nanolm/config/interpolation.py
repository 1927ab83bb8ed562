r"""Escape and detect OmegaConf interpolations in strings: a literal `${` is written as `\${`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Without the lookbehind, a long run of backslashes is searched again from each of them.
_DOLLAR_BRACE = re.compile(r"(?<!\\)(\\*)\$\{")

_VARIABLE = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*oc\.env\s*:\s*['\"]?([^\s'\",{}$]+)")


def escape(text: str) -> str:
    """Escape `${`, so that OmegaConf does not read it as an interpolation."""
    return _DOLLAR_BRACE.sub(lambda match: match[1] * 2 + "\\${", text)


def unescape(text: str) -> str:
    """Undo `escape`."""
    return _DOLLAR_BRACE.sub(lambda match: match[1][: len(match[1]) // 2] + "${", text)


def has_interpolation(text: str) -> bool:
    """Whether the string has a `${` that is not escaped."""
    return any(len(match[1]) % 2 == 0 for match in _DOLLAR_BRACE.finditer(text))


def variables_in(text: str) -> list[str]:
    """Return the names of the environment variables that the `${oc.env:NAME}` in a string refer to."""
    return _VARIABLE.findall(text)


def map_strings(change: Callable[[str], str], value: Any) -> Any:
    """Copy plain data (dicts, lists and scalars) and change every string in it, except keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: map_strings(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(change, item) for item in value]
    return value
