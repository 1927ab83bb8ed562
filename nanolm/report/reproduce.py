"""The command that reproduces a run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanolm import shell
from nanolm.analysis.collection import plain_settings
from nanolm.compose import compose_command, format_override
from nanolm.config.fields import MISSING, flat
from nanolm.config.interpolation import map_strings, unescape
from nanolm.errors import NanolmError
from nanolm.registry import GROUPS
from nanolm.runs.directory import RunDirectory
from nanolm.runs.summary import ImportReference


def command(settings: Mapping[str, Any], choices: Mapping[str, str]) -> str | None:
    """Return the `nanolm train` command with exactly the settings of a run: its options, then single settings.

    Args:
        settings: config.yaml as {dotted key: plain value}.
        choices: the option chosen in each group.

    Returns:
        The command; None if there is none, because the settings need a plugin (reports import none), or options that no
        longer exist or have changed.
    """
    default = _compose(())
    if default is None or not settings or settings.get("plugins"):
        return None
    chosen = tuple(f"{group}={option}" for group, option in choices.items() if default[0].get(group) != option)
    line = _compose(chosen)
    if line is None:
        chosen += tuple(f"{key}={format_override(settings[key])}" for key in _without_default(settings))
        line = _compose(chosen)
    if line is None:
        return None
    _, given = line
    changed = [key for key in settings if settings[key] != given.get(key, KeyError)]
    overrides = {key: f"{key}={format_override(settings[key])}" for key in changed}
    if given.keys() != settings.keys() or not all(_is_parsed(overrides[key], settings[key]) for key in changed):
        return None
    return shell.join("nanolm", "train", *chosen, *overrides.values())


def fork_command(settings: Mapping[str, Any], parent: Mapping[str, Any]) -> str | None:
    """Return the `nanolm train` command that forks a run again from the same checkpoint.

    Args:
        settings: config.yaml of the fork as {dotted key: plain value}.
        parent: `parent` of its summary: the run directory and step it started from.

    Returns:
        The command; None if the parent cannot be read, or a group has another option than in the parent.
    """
    try:
        run, step = RunDirectory(Path(parent["run"])), int(parent["step"])
        before = plain_settings(run.config)
    except (NanolmError, KeyError, TypeError, ValueError):
        return None
    if set(before) != set(settings):
        return None
    changed = [f"{key}={format_override(value)}" for key, value in settings.items() if value != before[key]]
    return shell.resume_command(run.checkpoints / f"step-{step:08d}", "fork=true", *changed)


def import_command(run: Path, imported: ImportReference) -> str | None:
    """Return the `nanolm import` command that imports a model again; None if the summary does not name its source."""
    options = {"--revision": imported.get("revision"), "--context-length": imported.get("context_length")}
    given = [text for option, value in options.items() if value is not None for text in (option, str(value))]
    source = imported.get("source")
    return shell.join("nanolm", "import", source, "--to", shell.path_argument(run), *given) if source else None


@functools.cache
def _compose(overrides: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """Return the options and the settings of a command, None if it does not compose.

    Cached: composing takes a third of a second, and the runs of a sweep share most of their options.
    """
    try:
        line = compose_command(overrides)
    except NanolmError:
        return None
    return line.choices, flat(line.config)


def _without_default(settings: Mapping[str, Any]) -> list[str]:
    """Return the settings that have no default, such as the path of a text."""
    schemas = {group: GROUPS[group].schemas.get(settings.get(f"{group}.name", "")) for group in GROUPS}
    fields = [(group, field) for group, schema in schemas.items() if schema for field in dataclasses.fields(schema)]
    keys = [f"{group}.{field.name}" for group, field in fields if field.name != "name" and field.default == MISSING]
    return [key for key in keys if settings.get(key) is not None]


def _is_parsed(override: str, value: Any) -> bool:
    """Return whether an override is parsed as its value, as any number is."""
    return value is None or isinstance(value, int | float) or _parse(override) == value


@functools.lru_cache(maxsize=10_000)
def _parse(override: str) -> Any:
    """Return the value of an override, as Hydra and OmegaConf parse it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return map_strings(unescape, OverridesParser.create().parse_override(override).value())
