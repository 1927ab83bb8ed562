"""Parse overrides with Hydra's grammar, and apply and inspect them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from nanolm.config.fields import flatten
from nanolm.config.interpolation import escape
from nanolm.errors import SettingsError, raise_all
from nanolm.json_text import is_finite_number

if TYPE_CHECKING:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Override

# Options of a sweep: their names on the command line, and in Hydra.
SWEEP_OPTIONS = {f"sweep.{name}": f"hydra.sweeper.{name}" for name in ("fail_fast", "max_hours", "order")}

# The key of an item of a list, such as scheduler.parts.0.gamma.
LIST_PART = re.compile(r"\.\d+(\.|$)")

# Strings that need no quotes, except KEYWORDS.
PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_/.-]*")
KEYWORDS = ("null", "true", "false", "nan", "inf")

# Each value of a range and each job of a grid is composed before the sweep starts, in a few milliseconds.
MOST_VALUES = 10_000


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


def format_override(value: object) -> str:
    """Format a value for an override: `key={format_override(value)}` sets the key to it, whatever it is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{format_override(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(format_override, value)) + "]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    return text if PLAIN.fullmatch(text) and text.lower() not in KEYWORDS else quoted(escape(text))


def is_of_hydra(override: Override) -> bool:
    """Whether an override sets something of Hydra itself."""
    return override.is_hydra_override() or override.key_or_group == "hydra"


def is_plain_value(override: Override) -> bool:
    """Whether an override sets one existing setting, on which no choice of an option depends."""
    is_change = not (override.is_add() or override.is_force_add() or override.is_delete())
    key = override.key_or_group
    return is_change and not key.startswith("hydra.") and ("." in key or key == "seed")


def is_part(key: str, of: str) -> bool:
    """Whether a dotted key is another one, or is below it."""
    return f"{key}.".startswith(f"{of}.")


def with_values(task: DictConfig, overrides: Sequence[Override], values: Mapping[str, Any] | None = None) -> DictConfig:
    """Return a copy with plain values set.

    Args:
        values: set before the overrides, by dotted key.

    Raises:
        OmegaConfBaseException: there is no such setting, or the value has another type.
    """
    copied = task.copy()
    OmegaConf.set_struct(copied, True)
    for key, value in (values or {}).items():
        OmegaConf.update(copied, key, value, merge=True)
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
    keys = {key for key, _ in flatten(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)))}
    return keys | {key[:at] for key in keys for at, sign in enumerate(key) if sign == "."}


def wrong_range(override: Override) -> SettingsError | None:
    """Return what is wrong with the ends, the step or the length of a range or an interval, if it is one."""
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    swept = override.value()
    if isinstance(swept, IntervalSweep):
        low, high, step, example = swept.start, swept.end, None, "interval(0.1,0.3)"
    elif isinstance(swept, RangeSweep):
        low, high, step, example = swept.start, swept.stop, swept.step, "range(1,9,2)"
    else:
        return None

    def wrong(problem: str, hint: str) -> SettingsError:
        return SettingsError(f"{override.input_line} {problem}", where=override.key_or_group, hint=hint)

    if not all(number is None or is_finite_number(number) for number in (low, high, step)):
        return wrong("is not finite", f"give finite numbers, as in {example}")
    if step is None:
        return None
    if step == 0:
        return wrong(
            "has a step of 0 and would never end",
            "use a step other than 0, as in range(0.1,0.3,0.1); the third number is the step, not a count",
        )
    # No division: the quotient of integers may be too large for a float.
    if (high - low) * (1 if step > 0 else -1) > MOST_VALUES * abs(step):
        return wrong(
            f"has more than {MOST_VALUES:,} values",
            "use a larger step, or list the values: 1e-3,3e-3; a study samples interval(LOW,HIGH) or "
            "int(interval(LOW,HIGH))",
        )
    if (high - low) * step <= 0:
        hint = "range(START,STOP,STEP) leaves STOP out; it counts down only with a negative STEP"
        return wrong("has no value in it", hint)
    return None
