"""Check single overrides: forms without a meaning in nanolm, settings of Hydra, and overrides of the other mode."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm.compose.hydra_settings import HINTS, check_search_path, hint
from nanolm.compose.overrides import LIST_PART, SWEEP_OPTIONS, is_of_hydra
from nanolm.compose.yaml_files import ALL_GROUPS, GLOBAL_GROUPS
from nanolm.errors import NanolmError, SettingsError, nearest
from nanolm.files import user_path

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Settings of Hydra that the command line may set, and whether they apply to sweeps only (True), to single runs only
# (False) or to both (None); `name.*` is every setting below it.
SUPPORTED = {
    "hydra.run.dir": False,
    "hydra.sweep.dir": True,
    "hydra.searchpath": None,
    "hydra/launcher": True,
    "hydra.launcher.*": True,
    "hydra/sweeper": True,
    "hydra/sweeper/*": True,
    "hydra.sweeper.*": True,
}

# Options of former versions, and a setting of Hydra's own sweeper, with what to write instead.
REPLACED = {
    "hydra/launcher=joblib": "hydra/launcher=local, which has n_jobs as well, and needs no extra",
    "hydra/launcher=submitit_local": "hydra/launcher=slurm hydra.launcher.executor=local",
    "hydra/launcher=submitit_slurm": "hydra/launcher=slurm, with time_limit, mem and max_requeues in place of "
    "timeout_min, mem_gb and max_num_timeout",
    "hydra.sweeper.max_batch_size": "hydra.sweeper.max_running, the jobs at a time",
}

# Settings that name a directory, with an example.
DIRECTORIES = {"hydra.run.dir": "outputs/my_run", "hydra.sweep.dir": "outputs/my_sweep"}


def override_problem(override: Override, multirun: bool) -> SettingsError | None:
    """Return what is wrong with an override whatever the settings are, or None."""
    return _unsupported_form(override) or check_hydra_override(override, multirun) or _wrong_values(override, multirun)


def empty_directory(key: str) -> SettingsError:
    """The error for a directory that is empty, as from an unset shell variable: it does not mean the current one."""
    return SettingsError(
        f"{key} is empty", where=f"{key}=", hint=f"name a folder, as in {key}={DIRECTORIES[key]}, or leave it out"
    )


def missing_folders(overrides: Sequence[Override], config_dir: str | None) -> list[NanolmError]:
    """Find folders of options (--config-dir, hydra.searchpath) that do not exist."""
    problems: list[NanolmError] = []
    if config_dir is not None and not (config_dir and user_path(config_dir).is_dir()):
        name = config_dir or "without a name"
        problems.append(
            SettingsError(f"there is no folder {name}", where="--config-dir", hint="name an existing folder")
        )
    for override in overrides:
        text = override.input_line
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
    key, text = override.key_or_group, override.input_line
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


def check_hydra_override(override: Override, multirun: bool) -> SettingsError | None:
    """Return what is wrong with a setting of Hydra, or with an option of sweeps in a single run."""
    key, text = override.key_or_group, _typed(override)
    if not (is_of_hydra(override) or key in ("sweep", *SWEEP_OPTIONS)):
        return None
    if replaced := next((name for name in (text, key) if name in REPLACED), None):
        return SettingsError(f"{replaced} was replaced", where=text, hint=REPLACED[replaced])
    modes = {name: mode for name, mode in SUPPORTED.items() if fnmatch.fnmatchcase(key, name)}
    if is_of_hydra(override) and not modes:
        supported = {name.rstrip("./*") for name in SUPPORTED}
        return SettingsError(f"{key} is not supported", where=text, hint=hint(key) or nearest(key, supported))
    if override.is_delete():
        return SettingsError(f"{key} cannot be removed", where=text, hint="leave it out, or give it another value")
    is_for_sweeps = next(iter(modes.values()), True)
    if is_for_sweeps is True and not multirun:
        is_directory = key == "hydra.sweep.dir"
        return SettingsError(
            f"{text} applies to sweeps only",
            where="the command line",
            hint="hydra.run.dir=FOLDER sets the directory of a single run"
            if is_directory
            else "nanolm train -m ... runs a sweep",
        )
    if is_for_sweeps is False and multirun:
        return SettingsError(
            f"{text} applies to a single run, and -m starts several",
            where="the command line",
            hint="hydra.sweep.dir=FOLDER sets the directory of a sweep",
        )
    if key.startswith("hydra.sweeper.") and isinstance(override.value(), dict) and override.value():
        return SettingsError(
            f"{key} cannot be set on the command line",
            where=text,
            hint="optimizer.lr=0.1,0.2 tries several values; a study is a file in FOLDER/sweep, chosen with "
            "--config-dir FOLDER sweep=NAME",
        )
    return None


def _wrong_values(override: Override, multirun: bool) -> SettingsError | None:
    """Return what is wrong with a directory that is null, or with several values of what a sweep has once."""
    key, text = override.key_or_group, _typed(override)
    if key in DIRECTORIES and override.value() is None:
        return empty_directory(key)
    if not (multirun and override.is_sweep_override()):
        return None
    if key == "sweep":
        return SettingsError(f"{text} names several sweeps", where="sweep", hint="run one command for each of them")
    if is_of_hydra(override):
        return SettingsError(
            f"{text} gives several values, but a sweep has only one",
            where=_as_typed(key),
            hint="give one value; quote a value with a comma: 'key=\"a,b\"'",
        )
    return None


def _typed(override: Override) -> str:
    return _as_typed(override.input_line)


def _as_typed(text: str) -> str:
    """Replace Hydra's name of an option of a sweep by the one on the command line."""
    for name, in_hydra in SWEEP_OPTIONS.items():
        text = text.replace(in_hydra, name)
    return text
