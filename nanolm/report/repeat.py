"""The line that makes a run again."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from nanolm import shell
from nanolm.compose import compose_line, quoted
from nanolm.config.fields import MISSING, flat
from nanolm.config.interpolation import escape, map_strings, unescape
from nanolm.errors import NanolmError
from nanolm.registry import GROUPS

# How a run came about, and not what it is.
PASSING = ("resume", "plugins")

# Strings that a line gives without quotes, but for those that would be read as something else.
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*")
WORDS = ("null", "true", "false", "nan", "inf")


def command(settings: Mapping[str, Any], choices: Mapping[str, str]) -> str | None:
    """A `nanolm train` line that composes to the very settings of a run: its options, then what they do not give.

    Args:
        settings: config.yaml as {dotted key: plain value}.
        choices: the option chosen in each group.

    Returns:
        The line; None where there is none: for settings of a plugin, which is not imported to make a report, and of
        options that are no longer there or have other settings now.
    """
    ordinary = _composed(())
    if ordinary is None or not settings or settings.get("plugins"):
        return None
    chosen = tuple(f"{group}={option}" for group, option in choices.items() if ordinary[0].get(group) != option)
    line = _composed(chosen)
    if line is None:
        chosen += tuple(f"{key}={_word(settings[key])}" for key in _without_default(settings))
        line = _composed(chosen)
    if line is None:
        return None
    _, given = line
    differing = [key for key in settings if key not in PASSING and settings[key] != given.get(key, KeyError)]
    words = {key: f"{key}={_word(settings[key])}" for key in differing}
    if set(given) != set(settings) or any(_read(word) != settings[key] for key, word in words.items()):
        return None
    return shell.join("nanolm", "train", *chosen, *words.values())


@functools.cache
def _composed(words: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """The options and the settings of a line, None where it does not compose.

    To compose one takes a third of a second, and the runs of a sweep have most of it in common.
    """
    try:
        line = compose_line(words)
    except NanolmError:
        return None
    return line.choices, flat(line.config)


def _without_default(settings: Mapping[str, Any]) -> list[str]:
    """The settings that a line must give, such as the path of a text."""
    schemas = {group: GROUPS[group].schemas.get(settings.get(f"{group}.name", "")) for group in GROUPS}
    fields = [(group, field) for group, schema in schemas.items() if schema for field in dataclasses.fields(schema)]
    keys = [f"{group}.{field.name}" for group, field in fields if field.name != "name" and field.default == MISSING]
    return [key for key in keys if settings.get(key) is not None]


def _read(word: str) -> Any:
    """The value of a word, as Hydra and OmegaConf understand it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return map_strings(unescape, OverridesParser.create().parse_override(word).value())


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
        return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else quoted(escape(value))
    return repr(value)
