"""Save the settings of a run as YAML and load them. Nothing that is read is resolved or executed."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm import untrusted
from nanolm.config.composed import QUESTION_MARKS, summarize_error, to_config
from nanolm.config.fields import MISSING, plain
from nanolm.config.interpolation import escape, has_interpolation, map_strings
from nanolm.config.launch import LAUNCH_KEYS
from nanolm.config.run import SINGLE_SCHEMAS, Config
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, RunError, SettingsError
from nanolm.registry import GROUPS


def save_yaml(config: Config) -> str:
    """Format the settings as YAML. A literal `${` is escaped for OmegaConf."""
    tree = dataclasses.asdict(config, dict_factory=lambda items: {key: plain(value) for key, value in items})
    tree = map_strings(escape, tree)
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


def dump_inline(value: Any) -> str:
    """Format a plain value as YAML on one line."""
    # Other styles break the line at a line end.
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, default_style=style, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("\n").removesuffix("\n...")


def read_yaml(content: str | bytes) -> Any:
    """Parse YAML as OmegaConf does, without resolving interpolations.

    Raises:
        yaml.YAMLError: it is not YAML, or has a key twice.
    """
    return yaml.load(content, Loader=_loader())


def load_yaml(path: Path) -> Config:
    """Load the settings of a run. Nothing in the file is resolved, looked up or executed.

    Raises:
        RunError: the file is missing, cannot be read, is not valid YAML, or does not fit the schema.
    """
    if not os.path.lexists(path):
        raise RunError(f"there is no {path.name}", where=str(path.parent), hint="name a run directory")
    return typed_settings(untrusted.read_yaml(path, path.parent, _loader()), path)


def typed_settings(raw: dict[Any, Any], path: Path) -> Config:
    """Convert parsed settings to a Config. Nothing in them is resolved, looked up or executed.

    Args:
        raw: what `save_yaml` wrote, parsed.
        path: the file to name in errors.

    Raises:
        RunError: the settings do not fit the schema.
    """
    if _has_interpolation(raw):
        raise _error("holds an interpolation ${...}, which is never resolved here", path)
    if old := [key for key in LAUNCH_KEYS if has_key(raw, key)]:
        raise RunError(
            f"config.yaml has {', '.join(old)} from nanolm 0.1: launch options are no longer settings",
            where=str(path),
            hint="load the run with nanolm 0.1, or start a new run with its settings",
        )
    raw = map_strings(lambda text: QUESTION_MARKS if text == MISSING else text, raw)
    try:
        typed = OmegaConf.structured(Config)
        for field in dataclasses.fields(Config):
            group = field.name
            if group not in raw and field.default != MISSING:
                continue  # the run is older than this setting
            value = raw.pop(group)
            if isinstance(value, dict):
                typed[group] = OmegaConf.structured(_schema(group, value))
            typed[group] = OmegaConf.merge(typed[group], value) if isinstance(value, dict) else value
        if raw:
            raise KeyError(*raw)
        return to_config(typed)
    except NanolmError:
        raise
    except OmegaConfBaseException as error:
        explained = explain_value(typed, group, value, str(path)) if isinstance(error, MISFITS) else None
        raise _error(f"does not fit: {explained.found if explained else summarize_error(error)}", path) from error
    except KeyError as error:
        raise _error(f"has a missing or unknown key: {error}", path) from error


def _error(problem: str, path: Path) -> RunError:
    hint = "`nanolm train` writes this file; restore it from a copy of the run"
    return RunError(f"config.yaml {problem}", where=str(path), hint=hint)


def has_key(settings: Any, key: str) -> bool:
    """Return whether settings as read from YAML have a dotted key."""
    for name in key.split("."):
        if not isinstance(settings, dict) or name not in settings:
            return False
        settings = settings[name]
    return True


def _schema(group: str, value: dict[Any, Any]) -> type[Any]:
    """Return the schema of a group in a run's settings."""
    if group in SINGLE_SCHEMAS:
        return SINGLE_SCHEMAS[group]
    name = str(value.get("name"))
    if name not in GROUPS[group].names:
        raise SettingsError(
            f"the run used the {group} {name!r}, which is not registered",
            where=f"{group}.name",
            hint="if a plugin registers it, name its module: `nanolm train plugins=[my_module]`, or --plugins "
            "my_module for other commands",
        )
    return GROUPS[group].schema(name)


def _has_interpolation(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_interpolation, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and has_interpolation(value)


@functools.cache
def _loader() -> type[Any]:
    """Return OmegaConf's YAML loader, which is safe and refuses duplicate keys."""
    from omegaconf._utils import get_yaml_loader

    return get_yaml_loader()


class _Dumper(yaml.SafeDumper):
    """Quotes strings that OmegaConf or a YAML 1.1 parser would read as a number, a date or a boolean."""


# Line breaks of YAML 1.1, which a parser would turn into a line feed unless they are escaped.
_LINE_BREAKS = re.compile("[\r\x85\u2028\u2029]")


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if _LINE_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)
_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *resolvers]
    for first, resolvers in {**yaml.SafeDumper.yaml_implicit_resolvers, **_loader().yaml_implicit_resolvers}.items()
}
