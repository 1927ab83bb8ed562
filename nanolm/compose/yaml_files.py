"""Check the YAML files that a command line chooses, so that errors name a file and a line."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.compose import hydra_settings
from nanolm.compose.hydra_api import config_folder
from nanolm.compose.overrides import LIST_PART, expand
from nanolm.compose.yaml_file import GLOBAL_GROUPS, YamlFile, read_file
from nanolm.config.composed import summarize_error
from nanolm.config.fields import alternatives
from nanolm.config.launch import ALIASES, LAUNCH_KEYS
from nanolm.config.run import SETTING_GROUPS, SINGLE_SCHEMAS, Config
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, SettingsError, nearest, raise_all
from nanolm.files import user_path
from nanolm.registry import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# The groups of Hydra in which a file may choose, or be, an option.
PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")
ALL_GROUPS = (*SETTING_GROUPS, *GLOBAL_GROUPS)


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
        """Return the options of a group, from all folders and plugins."""
        found = plugin_options(group) if group in GROUPS else set()
        for folder in self._folders:
            files = (folder / group).rglob("*.yaml")
            found |= {path.relative_to(folder / group).with_suffix("").as_posix() for path in files}
        return sorted(found)

    def options_with(self, group: str, name: str) -> list[str]:
        """Return the options of a group that have a setting; the name of a nested one is dotted."""
        found = []
        for option in self.options(group):
            with contextlib.suppress(SettingsError):
                if _has_field(self._schema(group, option, ()), name):
                    found.append(option)
        return found

    def of_experiment(self) -> tuple[set[str], list[str]]:
        """Return the groups for which the chosen experiment chooses an option, and the dotted keys that it sets."""
        files = [file for file in self.files.values() if file.group == "experiment"]
        groups = {group for file in files for group, *_ in file.defaults if group in SETTING_GROUPS}
        return groups, [key for file in files for key, _, _ in file.settings()]

    def plugins(self) -> Iterator[tuple[Any, str]]:
        """Yield the setting `plugins` of each file, and its place."""
        for file in self.files.values():
            if not file.package and file.content.get("plugins") is not None:
                yield file.content["plugins"], file.where("plugins")

    def check(self, choices: dict[str, str]) -> list[NanolmError]:
        """Find unknown options, unknown settings and values of another type in the user's files.

        Args:
            choices: the option of each group, chosen by the command line or by train.yaml.
        """
        problems: list[NanolmError] = []
        for file in list(self.files.values()):
            if not file.is_ours:
                problems += list(self._wrong_structure(file)) or self._wrong_settings(file, choices)
        return problems

    def unnamed(self, task: DictConfig, choices: dict[str, str]) -> list[NanolmError]:
        """Find chosen files that do not say what they configure, such as which optimizer.

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
        """Return where a setting has its value from: the line of a file, or else the override."""
        found = [
            file.where(key_in_file)
            for file in self.files.values()
            for name, content, key_in_file in file.settings()
            if (name == key and content == value)
            or (key.startswith(f"{name}.") and isinstance(content, list) and value in content)
        ]
        return f"{found[-1]} ({key}={value})" if found else f"{key}={value}"

    def _path(self, group: str, option: str) -> Path | None:
        paths = (folder / group / f"{option.removesuffix('.yaml')}.yaml" for folder in self._folders)
        return next((path for path in paths if path.exists()), None)

    def _read(self, group: str, option: str, above: tuple[tuple[str, str], ...]) -> None:
        if (group, option) in above:
            circle = [*above[above.index((group, option)) :], (group, option)]
            first = self.files[circle[0]]
            self._problems["circle"] = SettingsError(
                f"defaults lists form a cycle: {' -> '.join('/'.join(place) for place in circle)}",
                where=str(first.path),
                hint="remove one of them",
            )
            return
        path = self._path(group, option)
        if path is None or (group, option) in self.files:
            return
        try:
            file = self.files[group, option] = read_file(path, group, option)
        except SettingsError as error:
            self._problems[str(path)] = error
            return
        for entry_group, entry, _, line in file.defaults:
            is_of_plugin = "/".join(entry_group.split("/")[:2]) in PLUGIN_GROUPS
            if entry_group.startswith("hydra/") and not (file.is_ours or is_of_plugin):
                where, hint = f"{path}:{line}", hydra_settings.hint(entry_group) or "leave it out"
                found = f"{entry_group.replace('/', '.')} is not supported"
                self._problems[where] = SettingsError(found, where=where, hint=hint)
            self._read(entry_group, entry, (*above, (group, option)))

    def _refuse_files_of_hydra(self, folder: Path) -> None:
        """Refuse files that would replace Hydra's own settings, or an installed launcher or sweeper."""
        from hydra.core.config_store import ConfigStore

        # The names in the store end with .yaml.
        repo = ConfigStore.instance().repo.get("hydra", {})
        plugins = [f"{group}/{name}" for group in PLUGIN_GROUPS for name in repo.get(group.removeprefix("hydra/"), {})]
        for name in ("hydra/config.yaml", *plugins):
            if (path := folder / name).exists():
                self._problems[str(path)] = SettingsError(
                    f"the file would replace Hydra's own {name.removesuffix('.yaml')}",
                    where=str(path),
                    hint="move it, or rename it",
                )

    def _wrong_structure(self, file: YamlFile) -> Iterator[NanolmError]:
        """Find what is wrong with the defaults list and the package of a file."""
        for group, option, is_override, line in file.defaults:
            where = f"{file.path}:{line}"
            if (inner := group.partition("/")[2]) in SETTING_GROUPS and group.startswith(f"{file.group}/"):
                yield SettingsError(
                    f"Hydra would search {inner} in the folder {file.group}",
                    where=where,
                    hint=f"write `- override /{inner}: {option}`",
                )
            elif group not in ALL_GROUPS:
                if not group.startswith(("hydra", "schema")):
                    yield SettingsError(f"there is no group {group!r}", where=where, hint=nearest(group, ALL_GROUPS))
            elif option != "null" and option.removesuffix(".yaml") not in (options := self.options(group)):
                yield SettingsError(f"no {group} is called {option!r}", where=where, hint=nearest(option, options))
            elif file.group in GLOBAL_GROUPS and group in SETTING_GROUPS and not is_override:
                yield SettingsError(
                    f"nanolm's own defaults list chooses {group} already",
                    where=where,
                    hint=f"write `- override /{group}: {option}`",
                )

        if file.group in GLOBAL_GROUPS and file.package and file.content:
            yield SettingsError(
                f"the file sets {file.package}, which has no settings",
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
            where = file.where(key_in_file)
            if key.split(".")[0] == "hydra" or LIST_PART.search(key):
                continue
            if key in LAUNCH_KEYS:
                typed = str(value).lower() if isinstance(value, bool) else value
                hint = f"give it on the command line: {ALIASES.get(key, key)}={typed}"
                found = f"{key} is a launch option, and cannot be set in a file"
                problems.append(SettingsError(found, where=where, hint=hint))
            elif (known := _known(task, key)) is not None:
                problems.append(SettingsError(f"there is no setting {key!r}", where=where, hint=nearest(key, known)))
            else:
                try:
                    OmegaConf.update(task, key, value, merge=True)
                except OmegaConfBaseException as error:
                    explained = explain_value(task, key, value, where) if isinstance(error, MISFITS) else None
                    problems.append(explained or SettingsError(summarize_error(error), where=f"{where} ({key})"))
        return problems

    def _entries(self, file: YamlFile) -> Iterator[tuple[str, str, bool, int]]:
        """Yield the entries of a file's defaults list; before each, those of the file that it names."""
        for entry in file.defaults:
            below = self.files.get(entry[:2])
            if below is not None and below is not file and entry[0] == file.group:
                yield from self._entries(below)
            yield entry

    def _schema(self, group: str, option: str, above: tuple[str, ...]) -> type[Any]:
        """Return the dataclass of an option: /schema/GROUP/NAME in its defaults list, or in those that it names."""
        if group in SINGLE_SCHEMAS:
            return SINGLE_SCHEMAS[group]
        registry = GROUPS[group]
        if (group, option) not in self.files and option not in above and (path := self._path(group, option)):
            self.files[group, option] = read_file(path, group, option)
        file = self.files.get((group, option))
        for entry_group, entry, _, _ in file.defaults if file and option not in above else ():
            if entry_group == f"schema/{group}" and entry in registry.schemas:
                return registry.schemas[entry]
            if entry_group == group:
                return self._schema(group, entry, (*above, option))
        return registry.schema(option)


def _has_field(schema: Any, name: str) -> bool:
    """Return whether a dataclass has a field, or one of its nested dataclasses the rest of a dotted name."""
    first, _, rest = name.partition(".")
    if first not in {field.name for field in dataclasses.fields(schema)}:
        return False
    return not rest or any(
        dataclasses.is_dataclass(kind) and _has_field(kind, rest)
        for kind in alternatives(typing.get_type_hints(schema)[first])
    )


def plugin_options(group: str) -> set[str]:
    """Return the options of a group that plugins have registered."""
    registry = GROUPS[group]
    return {name for name in registry if not registry[name].__module__.startswith("nanolm.")}


def _known(task: DictConfig, key: str) -> list[str] | None:
    """Return None if a setting exists, or is inside one that accepts any key; else the settings of the same group."""
    node: Any = task
    names = key.split(".")
    for at, name in enumerate(names):
        if not isinstance(node, DictConfig) or not OmegaConf.is_struct(node) or not OmegaConf.get_type(node):
            return None
        # `in` would not find a setting without a value.
        if name not in node.keys():  # noqa: SIM118
            prefix = "".join(f"{part}." for part in names[:at])
            return [prefix + str(other) for other in node]
        # Private, but reading the node in a public way would resolve its interpolation.
        node = node._get_node(name)
    return None


def _searched(parsed: Sequence[Override], config_dir: str | None) -> list[Path]:
    """Return the user's folders, in the order in which Hydra searches them."""
    folders = [user_path(config_dir).resolve()] if config_dir else []
    for override in parsed:
        if override.key_or_group == "hydra.searchpath" and isinstance(value := override.value(), list):
            folders += [Path(str(path).removeprefix("file://")) for path in value if "pkg://" not in str(path)]
    return list(dict.fromkeys(folders))
