"""Compare the config.yaml of a run with the settings that its newest checkpoint recorded, without loading either."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from nanolm.checksummed import MANIFEST, MAX_MANIFEST_BYTES
from nanolm.config.identity import describe_changes
from nanolm.config.roles import is_resumable
from nanolm.json_text import parse_object
from nanolm.run_layout import checkpoints_by_step
from nanolm.untrusted import StrPath, folder_of, read_inside

# The number of changed settings that a note names.
SHOWN = 3


def note_of_edits(checkpoints: StrPath, settings: Mapping[str, Any]) -> str:
    """Describe how config.yaml was edited after training.

    Only the manifest of the newest checkpoint is read. Settings that a run may change when it continues do not count.

    Args:
        checkpoints: the run's folder of checkpoints.
        settings: of its config.yaml, by dotted key.

    Returns:
        The changed settings with the old and the new value; an empty string if there are none, or no checkpoint has
        recorded any.
    """
    recorded = _recorded(checkpoints)
    if not recorded:
        return ""
    scheduler = str(recorded.get("scheduler.name"))
    changed = describe_changes(
        {
            key: (old, settings[key])
            for key, old in recorded.items()
            if key in settings and not _is_same(old, settings[key]) and not is_resumable(key, scheduler)
        }
    )
    if not changed:
        return ""
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return f"config.yaml has changed since the run was trained: {'; '.join(changed[:SHOWN])}{more}"


def _recorded(checkpoints: StrPath) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        newest = next(reversed(checkpoints_by_step(checkpoints).values()), None)
        if newest is not None:
            content = read_inside(newest / MANIFEST, folder_of(checkpoints), MAX_MANIFEST_BYTES)
            settings = parse_object(content).get("settings")
            return settings if isinstance(settings, dict) else {}
    return {}


def _is_same(old: Any, new: Any) -> bool:
    if old == new:
        return True
    if isinstance(new, str) and isinstance(old, int | float):
        # YAML 1.1 reads 1e-3 as a string, and nanolm as a number.
        with contextlib.suppress(ValueError):
            return float(new) == old
    return False
