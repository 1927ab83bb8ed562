"""Overrides as Hydra parses them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from nanolm.compose.ranges import wrong_range
from nanolm.errors import SettingsError, raise_all

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

# What it is called on the line, and by Hydra.
FAIL_FAST = "sweep.fail_fast"
HYDRA_FAIL_FAST = "hydra.sweeper.fail_fast"

# A key in a list, such as scheduler.parts.0.gamma.
LIST_PART = re.compile(r"\.\d+(\.|$)")


def parse(overrides: Sequence[str]) -> list[Override]:
    """The words as Hydra understands them.

    Raises:
        SettingsError: with every word that is none, or is a range that is empty, too long or without an end.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed, problems = [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except (HydraException, RecursionError):
            problems.append(
                SettingsError(f"cannot read {text!r}", where="the command line", hint=_readable(text, parser))
            )
    problems += [wrong for override in parsed if (wrong := wrong_range(override))]
    raise_all(problems)
    return parsed


def _readable(text: str, parser: OverridesParser) -> str:
    """The hint for a word that Hydra's grammar does not have: the word with its value in quotes, where that is one."""
    from hydra.errors import HydraException

    key, sign, value = text.partition("=")
    if value.strip() == "~":
        return f"the value for nothing is null: {key}=null"
    word = f"{key}={quoted(value)}"
    try:
        parser.parse_override(word)
        is_word = bool(sign and key and value)
    except (HydraException, RecursionError):
        is_word = False
    general = "settings are key=value; a value with characters such as spaces, commas or # is quoted twice: "
    return general + (shlex.quote(word) if is_word else "'key=\"a, b\"'")


def is_readable(word: str) -> bool:
    """Whether Hydra's grammar has such an override."""
    try:
        parse([word])
    except SettingsError:
        return False
    return True


def quoted(value: str) -> str:
    """A string as a Hydra override carries it, whatever characters are in it."""
    # Backslashes count only where they stand before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def is_plain_value(override: Override) -> bool:
    """Whether a word sets one setting that has a default, which no choice of an option hangs on."""
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete())
    key = override.key_or_group
    return is_change and not key.startswith("hydra.") and ("." in key or key == "seed")


def with_values(task: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """A copy with plain values set.

    Raises:
        OmegaConfBaseException: there is no such setting, or the value is of another type.
    """
    copied = task.copy()
    OmegaConf.set_struct(copied, True)
    for override in overrides:
        OmegaConf.update(copied, override.key_or_group, override.value(), merge=True)
    return copied


def expand(override: Override, multirun: bool) -> list[str]:
    """The overrides that a sweep makes of this one; itself when it sweeps nothing."""
    if not (multirun and override.is_sweep_override()):
        return [override.input_line]
    try:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except Exception:
        # Of an interval its sweeper tries more; here its lower end shows whether there is such a setting.
        low = getattr(override.value(), "start", None)
        return [] if low is None else [f"{override.get_key_element()}={low:.12g}"]


def known_keys(config: DictConfig) -> set[str]:
    """Every dotted key, those of groups included."""
    keys: set[str] = set()

    def walk(node: DictConfig, prefix: str) -> None:
        for name in map(str, node):
            key = f"{prefix}{name}"
            keys.add(key)
            child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none():
                walk(child, f"{key}.")

    walk(config, "")
    return keys


def leaf_keys(config: DictConfig) -> set[str]:
    """Every dotted key that is no group of others."""
    keys = known_keys(config)
    return keys - {key[:at] for key in keys for at, sign in enumerate(key) if sign == "."}
