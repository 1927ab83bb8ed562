"""Convert between composed OmegaConf nodes and dataclasses, and find values that cannot be converted."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from nanolm.config.fields import MISSING, leaves, setting_of
from nanolm.config.interpolation import escape, map_strings, variables_in
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError, nearest, raise_all

# Replaces the string "???" inside OmegaConf, where it would be a missing value. From a private use area.
QUESTION_MARKS = "\uf8ff???\uf8ff"


def to_config(composed: DictConfig) -> Config:
    """Convert a composed config to dataclasses and resolve every interpolation.

    Raises:
        SettingsError: a setting has no value or cannot be resolved, or a key is not in the schema.
    """
    raise_all([*unresolved_values(composed), *missing_values(composed), *unknown_keys(composed)])
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise SettingsError(summarize_error(error), where=str(error.full_key or "")) from error
    assert isinstance(config, Config)
    _restore_question_marks(config)
    return config


def to_omegaconf(value: Any) -> Any:
    """Convert a config, or one of its groups, to OmegaConf. Special characters in strings are escaped."""
    node = OmegaConf.structured(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            node[field.name] = to_omegaconf(item)
        else:
            node[field.name] = map_strings(lambda text: QUESTION_MARKS if text == MISSING else escape(text), item)
    return node


def missing_values(composed: DictConfig) -> list[NanolmError]:
    """Return an error for each setting that needs a value and has none."""
    return [
        SettingsError(f"{key} has no value", where=key, hint=f"add {key}=... to the command line")
        for key in sorted(key for node, name, key in _items(composed) if OmegaConf.is_missing(node, name))
    ]


def unresolved_values(composed: DictConfig, place: Callable[[str, Any], str] | None = None) -> list[NanolmError]:
    """Return an error for each setting whose interpolation `${...}` cannot be resolved.

    Args:
        composed: settings.
        place: returns where a setting, by key and value, was given.
    """
    problems: list[NanolmError] = []
    for node, name, key in _items(composed):
        if OmegaConf.is_interpolation(node, name):
            try:
                node[name]
            except (OmegaConfBaseException, RecursionError) as error:
                raw = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index]
                problems.append(unresolved(key, raw, error, place(key, raw) if place else ""))
    return problems


def settings_from_environment(composed: DictConfig, config: Config) -> dict[str, list[str]]:
    """Return the settings whose text has the value of an environment variable, by variable.

    Paths are left out, which are often given by variables, and so are numbers and choices, which hold no secrets.

    Args:
        composed: the settings with their interpolations.
        config: the same settings, resolved.
    """
    found: dict[str, list[str]] = {}
    for node, name, key in _items(composed):
        if not OmegaConf.is_interpolation(node, name):
            continue
        raw = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[index]
        for variable in filter(os.environ.get, variables_in(str(raw))):
            for setting, field, value in leaves(config):
                is_text = isinstance(value, str | list) and not setting_of(field).is_path
                if is_text and f"{key}.".startswith(f"{setting}."):
                    found.setdefault(variable, []).append(setting)
    return {variable: list(dict.fromkeys(settings)) for variable, settings in found.items()}


def unresolved(key: str, raw: Any, error: BaseException, where: str = "") -> SettingsError:
    """Describe why the interpolation of a setting cannot be resolved.

    Args:
        key: the setting.
        raw: its value, with the interpolation.
        error: raised by OmegaConf.
        where: where the value was given; by default, the override of the setting.
    """
    text = str(error)
    name = match[1] if (match := re.search(r"(?:key|variable|type) '?([^'\s]+)'?", text)) else ""
    if isinstance(error, GrammarParseError):
        reason = "its ${...} is malformed"
    elif "Recursive interpolation" in text or isinstance(error, RecursionError):
        reason = "it refers to itself"
    elif isinstance(error, InterpolationToMissingValueError):
        reason = "the setting that it refers to has no value"
    elif isinstance(error, InterpolationKeyError):
        reason = f"there is no setting {name!r}"
    elif isinstance(error, UnsupportedInterpolationType):
        reason = f"there is no resolver {name!r}"
    elif "Environment variable" in text:
        reason = f"the environment variable {name} is not set"
    elif match := re.search(r"[Vv]alue '(.*)' (?:of type|for field|is not)", text):
        reason = f"it resolves to {match[1]!r}, which does not fit the setting"
    else:
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", summarize_error(error))
    return SettingsError(
        f"{key} cannot be resolved: {reason}",
        where=where or f"{key}={raw}",
        hint="${oc.env:NAME} is an environment variable, ${group.key} another setting; write \\${ for a literal ${",
    )


def unknown_keys(node: Any, prefix: str = "") -> Iterator[NanolmError]:
    """Find each key that no dataclass has; Hydra does not check the keys of `+key=value`."""
    schema = OmegaConf.get_type(node) if isinstance(node, DictConfig) and not node._is_missing() else None
    if not dataclasses.is_dataclass(schema):
        return
    known = [f"{prefix}{field.name}" for field in dataclasses.fields(schema)]
    for name in map(str, node):
        key = f"{prefix}{name}"
        if key in known:
            yield from unknown_keys(node._get_node(name), f"{key}.")
        else:
            is_target = name == "_target_"
            hint = "configs hold short names, and nothing in them is executed" if is_target else nearest(key, known)
            yield SettingsError(f"there is no setting {key!r}", where=key, hint=hint)


def summarize_error(error: BaseException) -> str:
    """Return the reason in a Hydra or OmegaConf error, on one line."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = re.sub(r"\s+full_key:.*", "", str(cause), flags=re.DOTALL)
    return " ".join(line.strip() for line in text.splitlines() if line.strip()) or type(error).__name__


def _items(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[DictConfig | ListConfig, Any, str]]:
    """Every value that holds no others, as its container, its name there and its dotted key."""
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        key = f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig | ListConfig) and not (
            child._is_none() or child._is_missing() or child._is_interpolation()
        ):
            yield from _items(child, f"{key}.")
        else:
            yield node, name, key


def _restore_question_marks(config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _restore_question_marks(value)
        else:
            restored = map_strings(lambda text: MISSING if text == QUESTION_MARKS else text, value)
            setattr(config, field.name, restored)
