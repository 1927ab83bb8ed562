"""JSON without NaN and Infinity, which are written as null and read as None."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Numbers that may overflow a float have an exponent of three digits, or more digits than the largest float has. What
# looks like an exponent at the end or inside of a word is part of a checksum.
_LONG_EXPONENT = re.compile(r"[eE]\+?\d{3,}(?![\w\"])")
_LONG_NUMBER = re.compile(r"\d{309}")
_SAMPLE_OF_LONG_NUMBER = re.compile(r"\d{3}")
# Values are copied and written again by functions that call themselves for each level.
MAX_DEPTH = 100


def dump_json(value: Any, **options: Any) -> str:
    """Serialize a value as JSON text, with null in place of numbers that are not finite.

    Args:
        options: as json.dumps takes them.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(value), allow_nan=False, **options)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text, with None in place of NaN, Infinity and numbers too large for a float.

    Raises:
        ValueError: the text is not JSON, or is nested deeper than MAX_DEPTH.
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    try:
        value = _CHECKING_DECODER.decode(text) if _may_overflow(text) else _decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    # Most texts are too short for the check, or have too few brackets.
    if len(text) > 2 * MAX_DEPTH and text.count("[") + text.count("{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object, as `parse_json` does.

    Raises:
        ValueError: the text is not a JSON object.
    """
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def finite(value: Any) -> Any:
    """Copy a tree of dicts, lists and plain values, with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def is_finite_number(value: object) -> bool:
    """Return whether a value is an int or a float, no bool, and fits a finite float."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _depth(value: Any) -> int:
    """The number of nested objects and lists."""
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth


def _may_overflow(text: str) -> bool:
    if _LONG_EXPONENT.search(text):
        return True
    # At least three of every hundredth character are in a long number; looking for it everywhere is slow.
    return bool(_SAMPLE_OF_LONG_NUMBER.search(text[::100]) and _LONG_NUMBER.search(text))


def _decode(text: str) -> Any:
    # Decoding searches for whitespace around the value, which has at most a line end.
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        return _DECODER.decode(text)
    return value if text[end:] in ("", "\n") else _DECODER.decode(text)


def _parse_int(digits: str) -> int | None:
    return int(digits) if math.isfinite(float(digits)) else None


# json.loads would build a decoder for every row of metrics.jsonl. Checking each number is slower.
_DECODER = json.JSONDecoder(parse_constant=lambda constant: None)
_scan = _DECODER.scan_once  # type: ignore[attr-defined]
_CHECKING_DECODER = json.JSONDecoder(
    parse_constant=lambda constant: None, parse_float=lambda number: finite(float(number)), parse_int=_parse_int
)
