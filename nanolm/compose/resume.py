"""The settings of a run that is resumed or forked."""

from __future__ import annotations

import copy
from typing import Any

from nanolm.compose.line import Line
from nanolm.config.fields import flat
from nanolm.config.identity import describe_changes, differing, may_change
from nanolm.config.run import Config
from nanolm.errors import SettingsError, raise_all


def continue_run(saved: Config, line: Line, is_fork: bool = False) -> tuple[Config, list[str]]:
    """The settings to go on with: the run's own, with what the line gives anew and may be changed.

    Args:
        saved: the run's.
        line: the line that goes on with it.
        is_fork: whether another run begins there, which may change anything.

    Returns:
        The config, and what changed as 'key: old -> new'.

    Raises:
        SettingsError: the line gives something that would make it another experiment.
    """
    before, wanted = flat(saved), flat(line.config)
    # Another option has other keys, and brings them all.
    chosen = {key.split(".")[0] for key in line.given if key.endswith(".name")}
    asked = line.given | {key for key in set(before) ^ set(wanted) if key.split(".")[0] in chosen}
    changed = {key: values for key, values in differing(saved, line.config).items() if key in asked}
    unknown = [key for key in changed if key not in before and key.split(".")[0] not in chosen | {"logger"}]
    raise_all(
        [
            SettingsError(
                f"the run has no setting {key}: its {(group := key.split('.')[0])} is {before[f'{group}.name']}",
                where=key,
                hint=f"choose another {group} on the line as well, as in {group}={wanted[f'{group}.name']}",
            )
            for key in unknown
        ]
    )
    refused = [key for key in changed if not (is_fork or may_change(key, saved))]
    raise_all(
        [
            SettingsError(
                f"the run was made with {key}={before.get(key)}, and the line says {wanted.get(key)}",
                where=key,
                hint="leave it out to go on with the run, add fork=true to begin another one where it stands, or start "
                "a new one without resume",
            )
            for key in refused
        ]
    )
    merged = copy.deepcopy(saved)
    for key in changed:
        group = key.split(".")[0]
        if group == "logger" or f"{group}.name" in changed:
            setattr(merged, group, getattr(line.config, group))
        else:
            *nodes, name = key.split(".")
            setattr(_at(merged, nodes), name, getattr(_at(line.config, nodes), name))
    return merged, describe_changes(changed)


def _at(config: Config, names: list[str]) -> Any:
    """The dataclass in a config that these names lead to."""
    node: Any = config
    for name in names:
        node = getattr(node, name)
    return node
