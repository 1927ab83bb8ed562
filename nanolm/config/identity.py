"""The identity of a run's settings: which two runs are the same experiment, and what may change on resume."""

from __future__ import annotations

import hashlib
from typing import Any

from nanolm.config.fields import flat
from nanolm.config.roles import MAY_CHANGE, is_quiet
from nanolm.config.run import Config
from nanolm.config.scheduler import PlateauConfig
from nanolm.json_text import dump_json


def may_change(key: str, config: Config) -> bool:
    """Whether a run with these settings may go on with another value for this one."""
    if key == "trainer.eval_every" and isinstance(config.scheduler, PlateauConfig):
        return False
    return key in MAY_CHANGE or is_quiet(key)


def recorded(config: Config) -> dict[str, Any]:
    """The settings that a checkpoint's manifest repeats, as `flat`: all that may change a number."""
    return {key: value for key, value in flat(config).items() if not is_quiet(key)}


def differing(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that are not the same, in order, with both values; None where one does not have it.

    How a run begins (resume, fork) is none of them.
    """
    before, after = flat(first), flat(second)
    keys = sorted({*before, *after} - {"resume", "fork"})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def describe_changes(found: dict[str, tuple[Any, Any]]) -> list[str]:
    """What `differing` found, as 'key: old -> new'."""
    return [f"{key}: {before} -> {after}" for key, (before, after) in found.items()]


def identity(config: Config) -> str:
    """A hash of all that decides a run's numbers: two runs with the same one are the same experiment."""
    decisive = {key: value for key, value in flat(config).items() if not may_change(key, config)}
    return hashlib.sha256(dump_json(decisive, sort_keys=True).encode()).hexdigest()
