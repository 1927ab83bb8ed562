"""The line that makes a run again."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping
from typing import Any

from nanolm.compose import compose_line, quoted
from nanolm.config import Config, flat
from nanolm.errors import NanolmError

# How a run came about, and not what it is.
PASSING = ("resume", "plugins")

# Strings that a line gives without quotes, but for those that would be read as something else.
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*")
WORDS = ("null", "true", "false", "nan", "inf")


def command(config: Config, choices: Mapping[str, str]) -> str | None:
    """A `nanolm train` line that composes to the very settings of a run: its options, then what they do not give.

    Args:
        config: the settings.
        choices: the option chosen in each group.

    Returns:
        The line; None where there is none: for settings of a plugin, which is not imported to make a report, and of
        options that are no longer there or have other settings now.
    """
    wanted = flat(config)
    if wanted["plugins"]:
        return None
    try:
        ordinary, _ = _composed(())
        chosen = [f"{group}={option}" for group, option in choices.items() if ordinary.get(group) != option]
        _, given = _composed(tuple(chosen))
    except NanolmError:
        return None
    differing = [key for key in wanted if key not in PASSING and wanted[key] != given.get(key, KeyError)]
    words = {key: f"{key}={_word(wanted[key])}" for key in differing}
    if set(given) != set(wanted) or any(_read(word) != wanted[key] for key, word in words.items()):
        return None
    return " ".join(["nanolm train", *map(shlex.quote, [*chosen, *words.values()])])


@functools.cache
def _composed(words: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Any]]:
    """The options and the settings of a line; to compose one takes a third of a second, and runs have them in common."""
    line = compose_line(words)
    return line.choices, flat(line.config)


def _read(word: str) -> Any:
    """The value of a word, as Hydra understands it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(word).value()


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
        return value if PLAIN.fullmatch(value) and value.lower() not in WORDS else quoted(value)
    return repr(value)
