"""Explain values that do not match the type of their setting."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, ConfigTypeError, ValidationError

from nanolm.config.fields import LARGEST, alternatives, enum_of, off_hint, setting_of
from nanolm.config.interpolation import unescape
from nanolm.errors import SettingsError, nearest

UNKNOWN = (ConfigKeyError, ConfigAttributeError)
# Errors of OmegaConf for a value of a wrong type, or with unknown keys.
MISFITS = (ValidationError, ConfigTypeError, *UNKNOWN)

# Values that users type to disable a setting.
_OFF_VALUES = ("none", "off", "no", "never", "disabled", "nil", "~", "null", "false")

_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    dict: "a mapping, as in {a: 1}",
}

# Descriptions of lists, by the type of their items.
LISTS = {
    int: "a list of whole numbers, as in [1,2]",
    float: "a list of numbers, as in [0.1,0.2]",
    str: "a list of strings, as in [a,b]",
    dict: "a list of mappings, as in [{a: 1},{a: 2}]",
}


def explain_value(task: DictConfig, key: str, value: Any, where: str) -> SettingsError | None:
    """Describe a value that OmegaConf refused.

    Args:
        task: the composed settings.
        key: the setting that the value was given to.
        value: as parsed.
        where: the override, or the line of a file.

    Returns:
        The error, with a valid value as a hint if one is known; None if there is no such setting.
    """
    *groups, name = key.split(".")
    node: Any = task
    for group in groups:
        node = node._get_node(group) if isinstance(node, DictConfig) and not node._is_none() else None
    schema: Any = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
    fields = {field.name: field for field in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else {}
    if name not in fields:
        return None
    annotation = typing.get_type_hints(schema)[name]
    kinds = [typing.get_origin(part) or part for part in alternatives(annotation)]
    if isinstance(value, dict) and any(map(dataclasses.is_dataclass, kinds)):
        return next(filter(None, (_explain_nested(task, f"{key}.{part}", value[part], where) for part in value)), None)
    is_empty = isinstance(value, str) and not value.strip()
    return SettingsError(
        f"{key} is {'empty' if is_empty else _shown(value)}, and must be {describe_type(annotation)}",
        where=where,
        hint=_hint(task, key, value, kinds, setting_of(fields[name]).off),
    )


def _explain_nested(task: DictConfig, key: str, value: Any, where: str) -> SettingsError | None:
    copied = task.copy()
    OmegaConf.set_struct(copied, True)
    try:
        OmegaConf.update(copied, key, value, merge=True)
    except UNKNOWN:
        group, _, name = key.rpartition(".")
        known = [str(other) for other in OmegaConf.select(task, group)]
        return SettingsError(f"there is no setting {key!r}", where=where, hint=nearest(name, known))
    except MISFITS:
        return explain_value(task, key, value, where)
    return None


def describe_type(annotation: Any) -> str:
    """Describe the values that an annotation allows, such as "a whole number or null"."""
    return " or ".join(map(_described, alternatives(annotation)))


def _described(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if choices := enum_of([kind]):
        return f"one of {', '.join(member.name for member in choices)}"
    if typing.get_origin(kind) is list:
        item = typing.get_args(kind)[0]
        return LISTS.get(typing.get_origin(item) or item, "a list")
    kind = typing.get_origin(kind) or kind
    return "settings, as key: value" if dataclasses.is_dataclass(kind) else _TYPES.get(kind, "another value")


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return repr(unescape(value) if isinstance(value, str) else value)


def _hint(task: Mapping[Any, Any], key: str, value: Any, kinds: list[Any], off: str) -> str:
    if isinstance(value, str) and not value.strip():
        return "is a shell variable unset? give a value, or leave it out for its default"
    if value is None or value is False or str(value).strip().lower() in _OFF_VALUES:
        if off:
            return off_hint(key, off, task)
        if type(None) in kinds:
            return f"{key}=null"
    if isinstance(value, float) and value.is_integer() and int in kinds and abs(value) < LARGEST:
        return f"{key}={int(value)}"
    if choices := enum_of(kinds):
        close = difflib.get_close_matches(str(value), [member.name for member in choices], n=1)
        return f"{key}={close[0]}" if close else ""
    if schema := next(filter(dataclasses.is_dataclass, kinds), None):
        if "." not in key:
            return f"choose an option with {key}=NAME, or set one of its settings with {key}.NAME=VALUE"
        return f"set one of its settings, as in {key}.{dataclasses.fields(schema)[0].name}=VALUE"
    return ""
