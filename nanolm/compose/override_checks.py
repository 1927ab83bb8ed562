"""Check single overrides: forms of Hydra's grammar without a meaning in nanolm, and overrides of the other mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.compose.hydra_settings import HINTS, check_override, check_search_path, is_of_hydra
from nanolm.compose.overrides import FAIL_FAST, HYDRA_FAIL_FAST, LIST_PART, parse
from nanolm.compose.yaml_files import ALL_GROUPS, GLOBAL_GROUPS
from nanolm.errors import NanolmError, SettingsError
from nanolm.files import user_path

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Settings that name a directory, with an example.
DIRECTORIES = {"hydra.run.dir": "outputs/my_run", "hydra.sweep.dir": "outputs/my_sweep"}


def override_problem(override: Override, multirun: bool) -> SettingsError | None:
    """Return what is wrong with an override whatever the settings are, or None."""
    return _unsupported_form(override) or _wrong_mode(override, multirun)


def empty_directory(key: str) -> SettingsError:
    """The error for a directory that is empty, as from an unset shell variable: it does not mean the current one."""
    return SettingsError(
        f"{key} is empty", where=f"{key}=", hint=f"name a folder, as in {key}={DIRECTORIES[key]}, or leave it out"
    )


def missing_folders(overrides: Sequence[str], config_dir: str | None) -> list[NanolmError]:
    """Find folders of options (--config-dir, hydra.searchpath) that do not exist."""
    problems: list[NanolmError] = []
    if config_dir is not None and not (config_dir and user_path(config_dir).is_dir()):
        name = config_dir or "without a name"
        problems.append(
            SettingsError(f"there is no folder {name}", where="--config-dir", hint="name an existing folder")
        )
    for override in parse(overrides):
        text = override.input_line or ""
        if override.key_or_group != "hydra.searchpath" or check_search_path([text]):
            continue
        folders = override.value() if isinstance(override.value(), list) else [""]
        paths = [str(folder).removeprefix("file://") for folder in folders]
        problems += [
            SettingsError(f"there is no folder {path or 'without a name'}", where=text, hint=HINTS["hydra.searchpath"])
            for path in paths
            if not (path and Path(path).is_dir())
        ]
    return problems


def _unsupported_form(override: Override) -> SettingsError | None:
    key, text = override.key_or_group, override.input_line or ""
    value = text.partition("=")[2]
    is_group = key in ALL_GROUPS
    if override.package is not None and is_group:
        return SettingsError(f"{text}: {key} has no other package", where=text, hint=f"{key}={value}")
    is_null = override.value() is None and value.strip().lower() == "null"
    if is_group and (override.is_delete() or is_null):
        is_extra = key in GLOBAL_GROUPS
        return SettingsError(
            f"{text}: {'there is none to remove' if is_extra else f'every run has one {key}'}",
            where=text,
            hint="leave it out" if is_extra else f"choose another one: {key}=NAME; `nanolm train --help` lists them",
        )
    if override.is_delete() and not key.startswith("hydra") and not LIST_PART.search(key):
        return SettingsError(
            f"{text}: a setting cannot be removed", where=text, hint=f"leave it out for its default, or {key}=VALUE"
        )
    if is_group and (override.is_add() or override.is_force_add()):
        return SettingsError(f"{text}: {key} needs no +", where=text, hint=f"{key}={value}")
    return None


def _wrong_mode(override: Override, multirun: bool) -> SettingsError | None:
    """Return what is wrong with a sweep's override in a single run, a single run's in a sweep, or several values."""
    key, text = override.key_or_group, (override.input_line or "").replace(HYDRA_FAIL_FAST, FAIL_FAST)
    is_sweep_file = key == "sweep"
    if not multirun and (is_sweep_file or key in (FAIL_FAST, HYDRA_FAIL_FAST)):
        return SettingsError(
            f"{text} applies to sweeps only", where="the command line", hint="nanolm train -m ... runs a sweep"
        )
    if problem := check_override(override, multirun):
        return problem
    if key in DIRECTORIES and not override.is_delete() and override.value() is None:
        return empty_directory(key)
    if not (multirun and override.is_sweep_override()):
        return None
    if is_sweep_file:
        return SettingsError(f"{text} names several sweeps", where="sweep", hint="run one command for each of them")
    if is_of_hydra(override):
        return SettingsError(
            f"{text} gives several values, but a sweep has only one",
            where=key.replace(HYDRA_FAIL_FAST, FAIL_FAST),
            hint="give one value; quote a value with a comma: 'key=\"a,b\"'",
        )
    return None
