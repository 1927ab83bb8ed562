"""Merge the settings of a command line into those of the run that it resumes or forks."""

from __future__ import annotations

import copy
import functools
import operator

from nanolm.compose.command import ComposedCommand, drop_disabled_adapters
from nanolm.compose.diagnosis import not_in_run
from nanolm.config.fields import flat
from nanolm.config.help import format_value
from nanolm.config.identity import describe_changes, differing
from nanolm.config.roles import is_resumable
from nanolm.config.run import Config
from nanolm.errors import SettingsError, raise_all


def continue_run(saved: Config, command: ComposedCommand, is_fork: bool = False) -> tuple[Config, list[str]]:
    """Return the settings of the run with the changes that the command line makes.

    Args:
        saved: the settings of the run.
        command: the command line that resumes or forks it.
        is_fork: whether any setting may change, because a new run starts.

    Returns:
        The settings, and the changes as 'key: old -> new'.

    Raises:
        SettingsError: a setting may not change on resume, or the run's options do not have it.
    """
    before, wanted = flat(saved), flat(command.config)
    # Another option has other keys; all of them are new.
    chosen = {key.split(".")[0] for key in command.given if key.endswith(".name")}
    given = command.given | {key for key in set(before) ^ set(wanted) if key.split(".")[0] in chosen}
    changed = {key: values for key, values in differing(saved, command.config).items() if key in given}
    unknown = [key for key in changed if key not in before and key.split(".")[0] not in chosen | {"logger"}]
    raise_all(
        [
            not_in_run(key, before[f"{group}.name"], wanted[f"{group}.name"])
            for key in unknown
            for group in [key.split(".")[0]]
        ]
    )

    def is_implied(key: str) -> bool:
        # Another option was chosen, which is reported itself; only one of the two has this setting.
        name = f"{key.split('.')[0]}.name"
        return (key in before) != (key in wanted) and before.get(name) != wanted.get(name)

    raise_all(
        [
            SettingsError(
                f"the run was trained with {key}={format_value(before.get(key))}, and the command line sets "
                f"{format_value(wanted.get(key))}",
                where=key,
                hint="leave it out to resume the run, add fork=true to start a new run from its checkpoint, or start a "
                "new run without resume",
            )
            for key in changed
            if not (is_fork or is_resumable(key, saved.scheduler.name) or is_implied(key))
        ]
    )
    merged = copy.deepcopy(saved)
    for key in changed:
        group = key.split(".")[0]
        if group == "logger" or f"{group}.name" in changed:
            setattr(merged, group, getattr(command.config, group))
        else:
            *nodes, name = key.split(".")
            value = operator.attrgetter(key)(command.config)
            setattr(functools.reduce(getattr, nodes, merged), name, value)
    drop_disabled_adapters(merged, command.given)
    return merged, describe_changes(changed)
