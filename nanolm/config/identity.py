"""The identity of an experiment: a hash of its settings, and the differences between two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from nanolm.config.fields import flat, switched_off
from nanolm.config.help import format_value
from nanolm.config.roles import affects_results, is_resumable
from nanolm.config.run import Config
from nanolm.json_text import dump_json


def identity(config: Config) -> str:
    """Hash all settings that may not change on resume. Two runs with the same hash are the same experiment."""
    off = tuple(switched_off(config))
    decisive = {
        key: value
        for key, value in flat(config).items()
        if not (is_resumable(key, config.scheduler.name) or key.startswith(off))
    }
    return hashlib.sha256(dump_json(decisive, sort_keys=True).encode()).hexdigest()


def recorded(config: Config) -> dict[str, Any]:
    """Return the settings that affect results, as `flat` does. The manifest of a checkpoint records them."""
    return {key: value for key, value in flat(config).items() if affects_results(key)}


def differing(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by key, with both values; None where one config does not have the setting."""
    before, after = flat(first), flat(second)
    keys = sorted({*before, *after})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def describe_changes(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Format settings with their old and new values as 'key: old -> new', with values as on the command line."""
    return [f"{key}: {format_value(before)} -> {format_value(after)}" for key, (before, after) in changes.items()]
