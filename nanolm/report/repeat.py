"""The line that makes a run again."""

from __future__ import annotations

import shlex
from typing import Any

from nanolm.compose import compose_line, quoted
from nanolm.config import flat
from nanolm.config_file import load_yaml
from nanolm.errors import NanolmError
from nanolm.runs.collection import Run
from nanolm.runs.directory import RunDirectory

# How a run came about, and not what it is.
PASSING = ("resume", "plugins")


def command(run: Run) -> str | None:
    """A `nanolm train` line that composes to the very settings of a run.

    The options chosen, then each setting that they do not give. None where no line was found: the settings are damaged,
    or of a plugin, which is not imported to make a report.
    """
    try:
        wanted = flat(load_yaml(RunDirectory(run.path).config))
        if wanted["plugins"]:
            return None
        chosen = _needed_choices(run.choices)
        composed = _composed(chosen)
        words = [*chosen, *(f"{key}={_word(wanted.get(key))}" for key in wanted if _differs(key, wanted, composed))]
        again = _composed(words)
    except NanolmError:
        return None
    if any(_differs(key, wanted, again) for key in {*wanted, *again}):
        return None
    return " ".join(["nanolm train", *map(shlex.quote, words)])


def _needed_choices(choices: dict[str, str]) -> list[str]:
    """The options that are not those of a line without words."""
    ordinary = compose_line([]).choices
    return [f"{group}={option}" for group, option in choices.items() if ordinary.get(group) != option]


def _composed(words: list[str]) -> dict[str, Any]:
    return flat(compose_line(words).config)


def _differs(key: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    return key not in PASSING and one.get(key, KeyError) != other.get(key, KeyError)


def _word(value: object) -> str:
    """A value as a line gives it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_word(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    if isinstance(value, str):
        is_plain = value and all(letter.isalnum() or letter in "_-./:" for letter in value)
        is_plain = is_plain and value[0].isalpha() and value.lower() not in ("null", "true", "false", "nan", "inf")
        return value if is_plain else quoted(value)
    return repr(value)
