"""Parse overrides with Hydra's grammar, and apply and inspect them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from nanolm.compose.ranges import wrong_range
from nanolm.config.fields import flatten
from nanolm.errors import SettingsError, raise_all

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

# Its name on the command line, and in Hydra.
FAIL_FAST = "sweep.fail_fast"
HYDRA_FAIL_FAST = "hydra.sweeper.fail_fast"

# The key of an item of a list, such as scheduler.parts.0.gamma.
LIST_PART = re.compile(r"\.\d+(\.|$)")


def parse(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides.

    Raises:
        SettingsError: with every text that is not an override, or has a range that is empty, too long or infinite.
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
    """Return a hint for a text that is not an override: the text with its value quoted, if that is an override."""
    from hydra.errors import HydraException

    key, sign, value = text.partition("=")
    if value.strip() == "~":
        return f"write null for no value: {key}=null"
    word = f"{key}={quoted(value)}"
    try:
        parser.parse_override(word)
        is_word = bool(sign and key and value)
    except (HydraException, RecursionError):
        is_word = False
    general = "settings are key=value; a value with characters such as spaces, commas or # is quoted twice: "
    return general + (shlex.quote(word) if is_word else "'key=\"a, b\"'")


def is_readable(word: str) -> bool:
    """Whether a text is an override in Hydra's grammar."""
    try:
        parse([word])
    except SettingsError:
        return False
    return True


def quoted(value: str) -> str:
    """Quote a string with any characters for a Hydra override."""
    # Only backslashes before a quote have a meaning.
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), value)
    return f"'{escaped}'"


def is_plain_value(override: Override) -> bool:
    """Whether an override sets one existing setting, on which no choice of an option depends."""
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete())
    key = override.key_or_group
    return is_change and not key.startswith("hydra.") and ("." in key or key == "seed")


def with_values(task: DictConfig, overrides: Sequence[Override]) -> DictConfig:
    """Return a copy with plain values set.

    Raises:
        OmegaConfBaseException: there is no such setting, or the value has another type.
    """
    copied = task.copy()
    OmegaConf.set_struct(copied, True)
    for override in overrides:
        OmegaConf.update(copied, override.key_or_group, override.value(), merge=True)
    return copied


def expand(override: Override, multirun: bool) -> list[str]:
    """Return one override for each value of a sweep; the override itself if it is not swept."""
    if not (multirun and override.is_sweep_override()):
        return [override.input_line]
    try:
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except Exception:
        # A sweeper samples intervals; the lower end is enough to check the setting.
        low = getattr(override.value(), "start", None)
        return [] if low is None else [f"{override.get_key_element()}={low:.12g}"]


def known_keys(config: DictConfig) -> set[str]:
    """Return every dotted key, those of groups included."""
    keys = leaf_keys(config)
    return keys | {key[:at] for key in keys for at, sign in enumerate(key) if sign == "."}


def leaf_keys(config: DictConfig) -> set[str]:
    """Return every dotted key except those of groups."""
    return {key for key, _ in flatten(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)))}
