"""A Config from what was composed or saved, and back to YAML. Nothing that is read here is executed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from nanolm.config.fields import MISSING, plain
from nanolm.config.interpolation import escape, has_interpolation, map_strings
from nanolm.config.run import BASE_SCHEMAS, SINGLE_SCHEMAS, Config
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, RunError, SettingsError, nearest, raise_all
from nanolm.registry import GROUPS

# Stands for the string "???" while OmegaConf holds it, for which it is a missing value. From a private use area.
_QUESTION_MARKS = "\uf8ff???\uf8ff"

_CONFIG_HINT = "it is written by `nanolm train`; take it from a copy of the run"


def to_config(composed: DictConfig) -> Config:
    """The dataclasses behind a composed config, with every interpolation resolved.

    Raises:
        SettingsError: a setting has no value or cannot be resolved, or a key is not in the schema.
    """
    raise_all([*unresolved_values(composed), *missing_values(composed), *unknown_keys(composed)])
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise SettingsError(summarize_error(error), where=str(error.full_key or "")) from error
    assert isinstance(config, Config)
    _each_string(config, lambda text: MISSING if text == _QUESTION_MARKS else text)
    return config


def to_omegaconf(value: Any) -> Any:
    """A config, or a group of one, as OmegaConf holds it: strings stand for themselves, whatever is in them."""
    node = OmegaConf.structured(type(value))
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        is_group = dataclasses.is_dataclass(item)
        node[field.name] = to_omegaconf(item) if is_group else map_strings(_protected, _plain_tree(item))
    return node


def save_yaml(config: Config) -> str:
    """The settings as YAML text. It has nothing to resolve: `${` in a value is escaped as OmegaConf has it."""
    tree = map_strings(escape, _plain_tree(config))
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def load_yaml(path: Path) -> Config:
    """The settings of a run. Nothing in the file is resolved, looked up or executed.

    Raises:
        RunError: the file is missing, is not such YAML, or does not fit the schema.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"there is no {path.name}", where=str(path.parent), hint="name a run directory") from error
    except OSError as error:
        raise _unreadable(error, path) from error
    return parse_yaml(text, path)


def parse_yaml(text: str | bytes, path: Path) -> Config:
    """Parse settings that `save_yaml` wrote. Nothing in the text is resolved, looked up or executed.

    Args:
        path: the file to name in errors.

    Raises:
        RunError: the text is not such YAML, or does not fit the schema.
    """
    hint = _CONFIG_HINT
    try:
        raw = yaml.load(text, Loader=_loader())
    except Exception as error:
        raise _unreadable(error, path) from error
    if not isinstance(raw, dict):
        raise RunError("config.yaml holds no settings", where=str(path), hint=hint)
    if _has_interpolation(raw):
        raise RunError(
            "config.yaml holds an interpolation ${...}, which is never resolved here",
            where=str(path),
            hint=hint,
        )
    raw = map_strings(lambda text: _QUESTION_MARKS if text == MISSING else text, raw)
    try:
        typed = OmegaConf.structured(Config)
        for field in dataclasses.fields(Config):
            group = field.name
            if group not in raw and field.default != MISSING:
                continue  # a setting that is younger than the run
            value = raw.pop(group)
            if isinstance(value, dict):
                typed[group] = OmegaConf.structured(_schema(group, value))
            try:
                typed[group] = OmegaConf.merge(typed[group], value) if isinstance(value, dict) else value
            except MISFITS as error:
                if explained := explain_value(typed, group, value, str(path)):
                    raise RunError(
                        f"config.yaml does not fit: {explained.found}", where=str(path), hint=hint
                    ) from error
                raise
        if raw:
            raise KeyError(*raw)
        return to_config(typed)
    except NanolmError:
        raise
    except OmegaConfBaseException as error:
        raise RunError(f"config.yaml does not fit: {summarize_error(error)}", where=str(path), hint=hint) from error
    except KeyError as error:
        raise RunError(f"config.yaml has a missing or an unknown key: {error}", where=str(path), hint=hint) from error


def _unreadable(error: Exception, path: Path) -> RunError:
    mark = getattr(error, "problem_mark", None)
    reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split("\n")[0]
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    return RunError(f"config.yaml cannot be read: {reason}", where=place, hint=_CONFIG_HINT)


def missing_values(composed: DictConfig) -> list[NanolmError]:
    """One error for each setting that needs a value and has none."""
    return [
        SettingsError(f"{key} has no value", where=key, hint=f"add {key}=... to the line")
        for key in sorted(key for node, name, key in _items(composed) if OmegaConf.is_missing(node, name))
    ]


def unresolved_values(composed: DictConfig, place: Callable[[str, Any], str] | None = None) -> list[NanolmError]:
    """One error for each setting whose interpolation `${...}` cannot be resolved.

    Args:
        composed: settings.
        place: says where a setting, of this key and value, was given.
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


def unresolved(key: str, raw: Any, error: BaseException, where: str = "") -> SettingsError:
    """What is said of a setting whose interpolation cannot be resolved.

    Args:
        key: the setting.
        raw: its value, with the interpolation.
        error: what OmegaConf raised.
        where: where it was given.
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


def _items(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[tuple[DictConfig | ListConfig, Any, str]]:
    """Every value that is no container of others: what holds it, its name there, and its dotted key."""
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        key = f"{prefix}{name}"
        child = node._get_node(name)
        if isinstance(child, DictConfig | ListConfig) and not (
            child._is_none() or child._is_missing() or child._is_interpolation()
        ):
            yield from _items(child, f"{key}.")
        else:
            yield node, name, key


def unknown_keys(composed: DictConfig) -> list[NanolmError]:
    """Keys that no dataclass has: `+key=value` slips past the types of Hydra."""
    problems: list[NanolmError] = []

    def walk(node: DictConfig, prefix: str) -> None:
        schema = OmegaConf.get_type(node)
        if not dataclasses.is_dataclass(schema):
            return
        fields = {field.name for field in dataclasses.fields(schema)}
        for name in map(str, node):
            if name not in fields:
                hint = (
                    "configs carry short names, and nothing in them is executed"
                    if name == "_target_"
                    else nearest(f"{prefix}{name}", [f"{prefix}{field}" for field in fields])
                )
                problems.append(
                    SettingsError(f"there is no setting {prefix + name!r}", where=f"{prefix}{name}", hint=hint)
                )
                continue
            child = None if OmegaConf.is_missing(node, name) else node._get_node(name)
            if isinstance(child, DictConfig):
                walk(child, f"{prefix}{name}.")

    walk(composed, "")
    return problems


def _schema(group: str, value: dict[Any, Any]) -> type[Any]:
    if group in SINGLE_SCHEMAS:
        return SINGLE_SCHEMAS[group]
    name = str(value.get("name"))
    registry = GROUPS[group]
    if name not in registry.schemas and name not in registry:
        raise SettingsError(
            f"the run was made with {group} {name!r}, which is not known here",
            where=f"{group}.name",
            hint="if it is your own, name its module: `nanolm train plugins=[my_module]`, or --plugins my_module of "
            "other commands",
        )
    return registry.schemas.get(name, BASE_SCHEMAS[group])


def summarize_error(error: BaseException) -> str:
    """The one line of a Hydra or OmegaConf error that says what is wrong."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = re.sub(r"\s+full_key:.*", "", str(cause), flags=re.DOTALL)
    return " ".join(line.strip() for line in text.splitlines() if line.strip()) or type(error).__name__


def _plain_tree(value: Any) -> Any:
    """A dataclass as nested dicts and lists, enums by their name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain_tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_tree(item) for item in value]
    return plain(value)


def _protected(text: str) -> str:
    return _QUESTION_MARKS if text == MISSING else escape(text)


def _each_string(config: Any, change: Callable[[str], str]) -> None:
    """Changes every string in a dataclass and in the dataclasses, lists and dicts in it, in place."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            _each_string(value, change)
        elif isinstance(value, str | list | dict):
            setattr(config, field.name, map_strings(change, value))


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_interpolation, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and has_interpolation(value)


def _loader() -> type[Any]:
    """OmegaConf's reader of YAML: safe, and refuses keys that are there twice."""
    from omegaconf._utils import get_yaml_loader

    return get_yaml_loader()


class _Dumper(yaml.SafeDumper):
    """Quotes strings that OmegaConf or another reader of YAML 1.1 would take for a number, a date or a word."""


# Line breaks of YAML 1.1 that a reader makes a line feed of, unless they are escaped.
_LINE_BREAKS = re.compile("[\r\x85\u2028\u2029]")


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _LINE_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)
_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
    for first, resolvers in {**yaml.SafeDumper.yaml_implicit_resolvers, **_loader().yaml_implicit_resolvers}.items()
}
