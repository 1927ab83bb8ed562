"""Read one YAML file of an option, with the line of every key."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from nanolm.compose.hydra_api import config_folder
from nanolm.config.fields import flatten
from nanolm.config.yaml_io import read_yaml
from nanolm.errors import SettingsError

# Groups whose options set settings of every group.
GLOBAL_GROUPS = ("experiment", "sweep")


@dataclasses.dataclass(frozen=True)
class YamlFile:
    """The file of an option.

    Attributes:
        group: such as optimizer, or experiment.
        option: its name in the group, with the folders inside the group's, as in ladder/blocks.
        package: where its settings belong: a group, or an empty string for the whole config.
        content: its settings, without the defaults list.
        defaults: each entry as (group, option, is an override, line).
        lines: the line of each dotted key.
    """

    path: Path
    group: str
    option: str
    package: str
    content: dict[str, Any]
    defaults: list[tuple[str, str, bool, int]]
    lines: dict[str, int]

    @property
    def is_ours(self) -> bool:
        """Whether it is one of nanolm's own."""
        return self.path.is_relative_to(config_folder())

    def where(self, key: str = "") -> str:
        """Return the place of a key, for errors."""
        line = self.lines.get(key, 0)
        return f"{self.path}:{line}" if line else str(self.path)

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Yield the dotted key in the whole config, the value and the key in the file of every setting."""
        for key, value in flatten(self.content):
            yield (f"{self.package}.{key}" if self.package else key), value, key


def read_file(path: Path, group: str, option: str) -> YamlFile:
    """Read a file.

    Raises:
        SettingsError: it cannot be read, is not YAML, or does not contain settings.
    """
    hint = "configs/ has examples; `nanolm train --help` lists the options"
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = read_yaml(text)
    except OSError as error:
        raise SettingsError(f"the file cannot be read: {error.strerror}", where=str(path), hint=hint) from error
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"the file is not UTF-8: it has the byte 0x{error.object[error.start : error.start + 1].hex()}",
            where=f"{path}:{error.object.count(10, 0, error.start) + 1}",
            hint="save it as UTF-8 text",
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        raise SettingsError(f"the file is not YAML: {reason}", where=f"{path}:{line}", hint=hint) from error
    if content is None:
        raise SettingsError("the file is empty", where=str(path), hint=hint)
    if not isinstance(content, dict):
        what = "a list" if isinstance(content, list) else "one value"
        raise SettingsError(f"the file contains {what}, not settings as key: value", where=f"{path}:1", hint=hint)
    lines = dict(_lines(root))
    defaults = content.pop("defaults", None)
    if defaults is not None and not isinstance(defaults, list):
        raise SettingsError(
            f"defaults is {defaults!r}, and must be a list",
            where=f"{path}:{lines.get('defaults', 1)}",
            hint="defaults:\n           - OPTION\n           - _self_",
        )
    header = re.match(r"(?:\s*#[^\n]*\n|\s*\n)*?\s*#\s*@package\s+(\S+)", text)
    package = header[1] if header else group
    package = "" if package == "_global_" else package.replace("_group_", group)
    entries = [
        (*place, lines.get(f"defaults.{at}", 1))
        for at, entry in enumerate(defaults or [])
        for place in _entry(entry, group)
    ]
    strings = {str(key): value for key, value in content.items()}
    return YamlFile(path, group, option, package, strings, entries, lines)


def _entry(entry: Any, group: str) -> Iterator[tuple[str, str, bool]]:
    """Yield (group, option, is an override) for each option that an entry of a defaults list names."""
    if isinstance(entry, str):
        if entry == "_self_" or "${" in entry:
            return
        path = entry.split("@")[0]
        path = path[1:] if path.startswith("/") else f"{group}/{path}"
        within, _, option = path.rpartition("/")
        # An option in a subfolder of experiment/ or sweep/ has a slash in its name.
        top = path.split("/")[0]
        if top in GLOBAL_GROUPS:
            within, option = top, path.partition("/")[2]
        yield within, option, False
    elif isinstance(entry, dict) and len(entry) == 1:
        (key, value) = next(iter(entry.items()))
        words = str(key).split()
        name = words[-1].split("@")[0] if words else ""
        within = name[1:] if name.startswith("/") else f"{group}/{name}"
        for option in value if isinstance(value, list) else [value]:
            if "optional" not in words[:-1] and "${" not in str(option):
                yield within, "null" if option is None else str(option), "override" in words[:-1]


def _lines(node: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _lines(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for at, value in enumerate(node.value):
            yield f"{prefix}{at}", value.start_mark.line + 1
            yield from _lines(value, f"{prefix}{at}.")
