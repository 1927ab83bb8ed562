"""The YAML files that a command line chooses, read by themselves: what is wrong in them has a file and a line."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.compose.hydra_api import config_folder
from nanolm.compose.hydra_settings import hint
from nanolm.compose.overrides import LIST_PART, expand
from nanolm.config.composed import summarize_error
from nanolm.config.launch import ALIASES, LAUNCH_KEYS
from nanolm.config.run import BASE_SCHEMAS, SETTING_GROUPS, SINGLE_SCHEMAS, Config
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, SettingsError, nearest, raise_all
from nanolm.files import user_path
from nanolm.registry import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Groups whose options set settings of every group.
GLOBAL_GROUPS = ("experiment", "sweep")
# The groups of Hydra in which a file may choose, or be, an option.
PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")
ALL_GROUPS = (*SETTING_GROUPS, *GLOBAL_GROUPS)


@dataclasses.dataclass(frozen=True)
class YamlFile:
    """An option of a group, as its file has it.

    Attributes:
        group: such as optimizer, or experiment.
        option: its name in the group; what lies in a folder has the folder's name and a slash before it.
        package: where its settings go: a group, or an empty string for the whole config.
        content: without its defaults list.
        defaults: each entry as (group, option, is an override, line).
        lines: of each key, dotted, the line in the file.
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
        """Whether it came with nanolm."""
        return self.path.is_relative_to(config_folder())

    def where(self, key: str = "") -> str:
        """A place in the file for an error to name."""
        line = self.lines.get(key, 0)
        return f"{self.path}:{line}" if line else str(self.path)

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Every value: its dotted key in the whole config, the value, and its key in the file."""
        for key, value in _flat(self.content):
            yield (f"{self.package}.{key}" if self.package else key), value, key


class YamlFiles:
    """The files of the options that a command line chooses, and of those that their defaults lists choose in turn.

    Args:
        parsed: the overrides.
        config_dir: the user's own folder of YAML files.

    Raises:
        SettingsError: with every file that is not well-formed.
    """

    def __init__(self, parsed: Sequence[Override], config_dir: str | None) -> None:
        self._folders = [config_folder(), *_searched(parsed, config_dir)]
        self.files: dict[tuple[str, str], YamlFile] = {}
        self._problems: dict[str, NanolmError] = {}
        for folder in self._folders[1:]:
            self._refuse_files_of_hydra(folder)
        for override in parsed:
            if override.key_or_group in ALL_GROUPS and not override.is_delete():
                for text in expand(override, True):
                    self._read(override.key_or_group, text.split("=", 1)[-1].strip("'\""), ())
        raise_all(list(self._problems.values()))

    def options(self, group: str) -> list[str]:
        """What can be chosen in a group, in all folders and by plugins."""
        found = plugin_options(group) if group in GROUPS else set()
        for folder in self._folders:
            files = (folder / group).rglob("*.yaml")
            found |= {path.relative_to(folder / group).with_suffix("").as_posix() for path in files}
        return sorted(found)

    def options_with(self, group: str, name: str) -> list[str]:
        """The options of a group that have a setting of this name."""
        found = []
        for option in self.options(group):
            with contextlib.suppress(SettingsError):
                if name in {field.name for field in dataclasses.fields(self._schema(group, option, ()))}:
                    found.append(option)
        return found

    def plugins(self) -> Iterator[tuple[Any, str]]:
        """Each file's setting `plugins`, with the place that it stands at."""
        for file in self.files.values():
            if not file.package and file.content.get("plugins") is not None:
                yield file.content["plugins"], file.where("plugins")

    def check(self, choices: dict[str, str]) -> list[NanolmError]:
        """What is wrong in the users' files: options that are not there, settings that are not there or do not fit.

        Args:
            choices: the option of each group that the command line, or else train.yaml, chooses.
        """
        problems: list[NanolmError] = []
        for file in list(self.files.values()):
            if not file.is_ours:
                wrong = [*self._wrong_defaults(file), *self._wrong_package(file)]
                problems += wrong or self._wrong_settings(file, choices)
        return problems

    def unnamed(self, task: DictConfig, choices: dict[str, str]) -> list[NanolmError]:
        """The chosen files that say nothing of what they configure, such as which optimizer.

        Args:
            task: the composed settings.
            choices: the option of each group.
        """
        return [
            SettingsError(
                f"the file does not say which {group} it configures",
                where=str(file.path),
                hint="name an option to start from:\n         defaults:\n"
                f"           - {next(iter(GROUPS[group].schemas))}\n           - _self_",
            )
            for group, option in choices.items()
            if group in GROUPS and OmegaConf.is_missing(task[group], "name")
            if (file := self.files.get((group, option))) is not None
        ]

    def place(self, key: str, value: Any) -> str:
        """Where a setting has its value from: the line of a file, or else the words themselves."""
        found = [
            file.where(key_in_file)
            for file in self.files.values()
            for name, content, key_in_file in file.settings()
            if (name == key and content == value)
            or (key.startswith(f"{name}.") and isinstance(content, list) and value in content)
        ]
        return f"{found[-1]} ({key}={value})" if found else f"{key}={value}"

    def _exists(self, group: str, option: str) -> bool:
        is_plugin = group in GROUPS and option in plugin_options(group)
        return is_plugin or self._path(group, option) is not None

    def _path(self, group: str, option: str) -> Path | None:
        paths = (folder / group / f"{option.removesuffix('.yaml')}.yaml" for folder in self._folders)
        return next((path for path in paths if path.exists()), None)

    def _read(self, group: str, option: str, above: tuple[tuple[str, str], ...]) -> None:
        if (group, option) in above:
            circle = [*above[above.index((group, option)) :], (group, option)]
            first = self.files[circle[0]]
            self._problems["circle"] = SettingsError(
                f"defaults lists lead in a circle: {' -> '.join('/'.join(place) for place in circle)}",
                where=str(first.path),
                hint="take one of them out",
            )
            return
        path = self._path(group, option)
        if path is None or (group, option) in self.files:
            return
        try:
            file = self.files[group, option] = _read_file(path, group, option)
        except SettingsError as error:
            self._problems[str(path)] = error
            return
        for entry_group, entry, _, line in file.defaults:
            if not file.is_ours and _is_refused(entry_group):
                self._problems[f"{path}:{line}"] = SettingsError(
                    f"{entry_group.replace('/', '.')} is not supported",
                    where=f"{path}:{line}",
                    hint=hint(entry_group) or "leave it out",
                )
            self._read(entry_group, entry, (*above, (group, option)))

    def _refuse_files_of_hydra(self, folder: Path) -> None:
        """Refuse files that would replace Hydra's own settings, or an installed launcher or sweeper."""
        names = ["hydra/config", *(f"{group}/{name}" for group in PLUGIN_GROUPS for name in _plugins_of_hydra(group))]
        for name in names:
            if (path := folder / f"{name}.yaml").exists():
                self._problems[str(path)] = SettingsError(
                    f"the file would replace Hydra's own {name}",
                    where=str(path),
                    hint="move it away, or give it another name",
                )

    def _wrong_defaults(self, file: YamlFile) -> Iterator[NanolmError]:
        for group, option, is_override, line in file.defaults:
            where = f"{file.path}:{line}"
            if (inner := group.partition("/")[2]) in SETTING_GROUPS and group.startswith(f"{file.group}/"):
                yield SettingsError(
                    f"{inner} is looked for in the folder {file.group}",
                    where=where,
                    hint=f"write `- override /{inner}: {option}`",
                )
            elif group not in ALL_GROUPS:
                if not group.startswith(("hydra", "schema")):
                    yield SettingsError(f"there is no group {group!r}", where=where, hint=nearest(group, ALL_GROUPS))
            elif option != "null" and not self._exists(group, option):
                options = self.options(group)
                yield SettingsError(f"no {group} is called {option!r}", where=where, hint=nearest(option, options))
            elif file.group in GLOBAL_GROUPS and group in SETTING_GROUPS and not is_override:
                yield SettingsError(
                    f"{group} is chosen already, by nanolm's own defaults list",
                    where=where,
                    hint=f"write `- override /{group}: {option}`",
                )

    def _wrong_package(self, file: YamlFile) -> Iterator[NanolmError]:
        if file.group in GLOBAL_GROUPS and file.package and file.content:
            yield SettingsError(
                f"the settings of the file go to {file.package}, where there are none",
                where=str(file.path),
                hint="its first line must be `# @package _global_`",
            )

    def _wrong_settings(self, file: YamlFile, choices: dict[str, str]) -> list[NanolmError]:
        chosen = choices | {group: option for group, option, _, _ in self._entries(file) if group in SETTING_GROUPS}
        task = OmegaConf.structured(Config)
        for group in SETTING_GROUPS:
            option = file.option if file.group == group else chosen.get(group, "")
            task[group] = OmegaConf.structured(self._schema(group, option, ()))
        OmegaConf.set_struct(task, True)
        problems: list[NanolmError] = []
        for key, value, key_in_file in file.settings():
            if key.split(".")[0] == "hydra" or LIST_PART.search(key):
                continue
            if key in LAUNCH_KEYS:
                typed = str(value).lower() if isinstance(value, bool) else value
                problems.append(
                    SettingsError(
                        f"{key} is a launch option, and cannot be set in a file",
                        where=file.where(key_in_file),
                        hint=f"give it on the command line: {ALIASES.get(key, key)}={typed}",
                    )
                )
                continue
            known = _known(task, key)
            if known is not None:
                problems.append(
                    SettingsError(
                        f"there is no setting {key!r}", where=file.where(key_in_file), hint=nearest(key, known)
                    )
                )
                continue
            try:
                OmegaConf.update(task, key, value, merge=True)
            except OmegaConfBaseException as error:
                where = file.where(key_in_file)
                explained = explain_value(task, key, value, where) if isinstance(error, MISFITS) else None
                problems.append(explained or SettingsError(summarize_error(error), where=f"{where} ({key})"))
        return problems

    def _entries(self, file: YamlFile) -> Iterator[tuple[str, str, bool, int]]:
        """The entries of a file's defaults list and, before each, of the files that it names."""
        for entry in file.defaults:
            below = self.files.get(entry[:2])
            if below is not None and below is not file and entry[0] == file.group:
                yield from self._entries(below)
            yield entry

    def _schema(self, group: str, option: str, above: tuple[str, ...]) -> type[Any]:
        """The dataclass behind an option: that of /schema/GROUP/NAME in its defaults list or in those that it names."""
        if group in SINGLE_SCHEMAS:
            return SINGLE_SCHEMAS[group]
        schemas: dict[str, type[Any]] = GROUPS[group].schemas
        if (group, option) not in self.files and option not in above and (path := self._path(group, option)):
            self.files[group, option] = _read_file(path, group, option)
        file = self.files.get((group, option))
        for entry_group, entry, _, _ in file.defaults if file and option not in above else ():
            if entry_group == f"schema/{group}" and entry in schemas:
                return schemas[entry]
            if entry_group == group:
                return self._schema(group, entry, (*above, option))
        return schemas[option] if option in schemas else BASE_SCHEMAS[group]


def _is_refused(group: str) -> bool:
    return group.startswith("hydra/") and "/".join(group.split("/")[:2]) not in PLUGIN_GROUPS


def _plugins_of_hydra(group: str) -> set[str]:
    """The launchers or sweepers that are installed."""
    from hydra.core.config_store import ConfigStore

    options = ConfigStore.instance().repo.get("hydra", {}).get(group.removeprefix("hydra/"), {})
    return {name.removesuffix(".yaml") for name in options}


def plugin_options(group: str) -> set[str]:
    """The options of a group that plugins have registered."""
    registry = GROUPS[group]
    return {name for name in registry if not registry[name].__module__.startswith("nanolm.")}


def _read_file(path: Path, group: str, option: str) -> YamlFile:
    """Reads one file.

    Raises:
        SettingsError: it cannot be read, is not YAML, or is no table of settings.
    """
    from omegaconf._utils import get_yaml_loader

    hint = "see configs/ for files that are right; `nanolm train --help` lists the options"
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.load(text, Loader=get_yaml_loader())
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
        raise SettingsError(f"the file holds {what}, and not settings as key: value", where=f"{path}:1", hint=hint)
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
    """The (group, option, is an override) that an entry of a defaults list names."""
    if isinstance(entry, str):
        if entry == "_self_" or "${" in entry:
            return
        path = entry.split("@")[0]
        path = path[1:] if path.startswith("/") else f"{group}/{path}"
        within, _, option = path.rpartition("/")
        # What lies in a folder of experiment/ or sweep/ is an option with a slash in its name.
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


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _known(task: DictConfig, key: str) -> list[str] | None:
    """None where there is such a setting, or a part of one that takes anything; else the settings beside it."""
    node: Any = task
    names = key.split(".")
    for at, name in enumerate(names):
        if not isinstance(node, DictConfig) or not OmegaConf.is_struct(node) or not OmegaConf.get_type(node):
            return None
        # `in` would not find a setting without a value.
        if name not in node.keys():  # noqa: SIM118
            prefix = "".join(f"{part}." for part in names[:at])
            return [prefix + str(other) for other in node]
        node = node._get_node(name)
    return None


def _searched(parsed: Sequence[Override], config_dir: str | None) -> list[Path]:
    """The user's folders, in the order in which Hydra looks into them."""
    folders = [user_path(config_dir).resolve()] if config_dir else []
    for override in parsed:
        if override.key_or_group == "hydra.searchpath" and isinstance(value := override.value(), list):
            folders += [Path(str(path).removeprefix("file://")) for path in value if "pkg://" not in str(path)]
    return list(dict.fromkeys(folders))
