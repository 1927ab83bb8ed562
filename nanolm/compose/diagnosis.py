"""Find every mistake in a command line that does not compose."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from nanolm.compose.hydra_api import CONFIG_NAME, compose, without_hydra
from nanolm.compose.overrides import FAIL_FAST, LIST_PART, expand, is_plain_value, known_keys, parse, with_values
from nanolm.config import check
from nanolm.config_file import in_words, missing_values, to_config
from nanolm.errors import NanolmError, Problems, SettingsError, install_hint, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# What brings a plugin of Hydra that is not there by itself.
EXTRAS = {
    ("hydra/launcher", "joblib"): "joblib",
    ("hydra/launcher", "ray"): "ray",
    ("hydra/launcher", "submitit_local"): "submitit",
    ("hydra/launcher", "submitit_slurm"): "submitit",
}


def diagnose(parsed: Sequence[Override], multirun: bool) -> list[NanolmError]:
    """Tries every override alone, groups first, and returns what is wrong with each."""
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    search = [override.input_line for override in parsed if override.key_or_group == "hydra.searchpath"]
    # An experiment or a study may lie in the user's folder alone, which Hydra does not list.
    groups = sorted({*loader.list_groups(""), "experiment", "sweep"} - {"schema", "hydra"})
    problems: list[NanolmError] = []
    sound: list[str] = []
    values: list[Override] = []
    for override in parsed:
        key = override.key_or_group
        if not multirun and override.is_sweep_override():
            problems.append(
                SettingsError(
                    f"{override.input_line} gives several values",
                    where=key,
                    mend="add -m to run every combination, or quote the value: 'key=\"a,b\"'",
                )
            )
        elif key in ("hydra/launcher", "hydra/sweeper") and (problem := _no_such_plugin(override, loader)):
            problems.append(problem)
        elif key in groups or key.startswith("hydra/"):
            options = _options(loader, key, search)
            for text in expand(override, multirun):
                choice = text.split("=", 1)[-1]
                if choice in options or choice == "null":
                    sound.append(text)
                else:
                    problems.append(
                        SettingsError(f"no {key} is called {choice!r}", where=key, mend=nearest(choice, options))
                    )
        else:
            values.append(override)
    one_per_group = {text.split("=", 1)[0]: text for text in sound}
    base = [*search, *one_per_group.values()]
    try:
        composed = compose(base)
    except Exception as error:
        return [*problems, *_problems_of(error, ", ".join(base))]
    for text in sound:
        if text not in base:
            problems += _try([*(t for t in base if t.split("=", 1)[0] != text.split("=", 1)[0]), text], text)
    task = without_hydra(composed)
    known = known_keys(task)
    hydras = {f"hydra.{name}" for name in known_keys(composed.hydra)}
    for override in values:
        key = override.key_or_group
        in_hydra = re.split(r"[./]", key)[0] == "hydra"
        if LIST_PART.search(key):
            continue  # a part of a list that another word gives: alone it means nothing
        if not in_hydra and key not in known:
            held = [name for name in (*known, *groups, FAIL_FAST) if name]
            problems.append(
                SettingsError(f"there is no setting {key!r}", where=override.input_line or key, mend=nearest(key, held))
            )
            continue
        for text in expand(override, multirun):
            wrong = _try_value(task, text) if is_plain_value(override) else _try([*base, text], text)
            if wrong and in_hydra and key not in hydras:
                wrong = [SettingsError(f"there is no setting {key!r}", where=text, mend=nearest(key, hydras))]
            problems += wrong
            if not wrong:
                sound.append(text)
    if problems:
        # What is right so far may still not fit together, and the reader wants to hear it now.
        fitting = {text.split("=", 1)[0]: text for text in (*search, *sound)}
        fitted = without_hydra(compose(list(fitting.values())))
        problems += missing_values(fitted) or check(to_config(fitted))
    return problems


def _no_such_plugin(override: Override, loader: Any) -> NanolmError | None:
    """What is wrong with a launcher or a sweeper that is not there, and what brings it."""
    key, name = override.key_or_group, str(override.value())
    options = _options(loader, key, [])
    if name in options:
        return None
    extra = EXTRAS.get((key, name))
    return SettingsError(
        f"no {key} is called {name!r}" if extra is None else f"the launcher {name} is not installed",
        where=f"{key}={name}",
        mend=nearest(name, options) if extra is None else install_hint(extra),
    )


def _options(loader: Any, group: str, search: list[str]) -> list[str]:
    """What can be chosen in a group; what lies in folders of it by folder/name."""
    from hydra.core.object_type import ObjectType

    options = list(loader.get_group_options(group, ObjectType.CONFIG, CONFIG_NAME, search))
    for folder in loader.get_group_options(group, ObjectType.GROUP, CONFIG_NAME, search):
        options += [f"{folder}/{name}" for name in _options(loader, f"{group}/{folder}", search)]
    return options


def _try_value(task: DictConfig, text: str) -> list[NanolmError]:
    try:
        with_values(task, parse([text]))
    except Exception as error:
        return [SettingsError(in_words(error), where=text)]
    return []


def _try(overrides: Sequence[str], text: str) -> list[NanolmError]:
    try:
        compose(overrides)
    except Exception as error:
        return _problems_of(error, text)
    return []


def _problems_of(error: Exception, where: str) -> list[NanolmError]:
    """The problems that composing found: nanolm's own as they stand, and Hydra's as one of its settings."""
    if isinstance(error, Problems):
        return error.problems
    return [error if isinstance(error, NanolmError) else SettingsError(in_words(error), where=where)]
