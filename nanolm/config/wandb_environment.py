"""The destination of a W&B run: from the settings, the WANDB_* environment variables or the defaults."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping

from nanolm.config.logger import WandbConfig, WandbMode
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError
from nanolm.option_types import quote

PROJECT = "nanolm"

# The variable that is used where a setting is not given.
VARIABLES = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP", "tags": "WANDB_TAGS"}

# The values of WANDB_MODE, older names of which are still in use.
OLDER_MODES = {"dryrun": "offline", "run": "online"}
MODES = ("online", "offline", "disabled", "shared", *OLDER_MODES)
FALSE = ("", "0", "false", "no", "off")

# Characters that wandb refuses, and the maximum lengths.
FORBIDDEN = {"project": "/\\#?%:", "entity": "/\\#?%: ", "run id": ":;,#?/'\\"}
LENGTHS = {"project": 128, "entity": 128, "group": 128, "tag": 64, "run id": 128}


@dataclasses.dataclass(frozen=True)
class Destination:
    """The destination of a W&B run.

    Attributes:
        project, entity, group, tags: as in WandbConfig, resolved.
        mode: online, offline, disabled, shared, or auto if neither the settings nor the environment choose one.
        from_environment: the environment variables that were used, in the order of the fields.
    """

    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    mode: str
    from_environment: tuple[str, ...]


def destination(config: WandbConfig, environment: Mapping[str, str] = os.environ) -> Destination:
    """Resolve the destination. A setting takes precedence over its environment variable."""
    tags = tuple(tag.strip() for tag in environment.get("WANDB_TAGS", "").split(",") if tag.strip())
    mode, mode_variable = _mode(config, environment)
    used = [*(variable for name, variable in VARIABLES.items() if not getattr(config, name)), mode_variable]
    return Destination(
        project=config.project or environment.get("WANDB_PROJECT") or PROJECT,
        entity=config.entity or environment.get("WANDB_ENTITY") or None,
        group=config.group or environment.get("WANDB_RUN_GROUP") or None,
        tags=tuple(config.tags) or tags,
        mode=mode,
        from_environment=tuple(variable for variable in used if environment.get(variable)),
    )


def check_wandb(
    config: WandbConfig, environment: Mapping[str, str] = os.environ, prefix: str = "logger."
) -> list[NanolmError]:
    """Check the settings and the WANDB_* variables, which wandb validates even if a setting takes precedence.

    Args:
        prefix: of the settings' names as the user types them, such as "--".
    """
    names = ("project", "entity", "group")
    values = [
        *((f"{prefix}{name}", name, getattr(config, name)) for name in names),
        *((f"{prefix}tags", "tag", tag) for tag in dict.fromkeys(config.tags)),
        *((VARIABLES[name], name, environment.get(VARIABLES[name]) or None) for name in names),
        ("WANDB_RUN_ID", "run id", environment.get("WANDB_RUN_ID") or None),
        *(("WANDB_TAGS", "tag", tag) for tag in dict.fromkeys(environment.get("WANDB_TAGS", "-").split(","))),
    ]
    problems: list[NanolmError] = [
        SettingsError(problem, where=where, hint=_hint(where))
        for where, kind, value in values
        if value is not None and (problem := refusal(kind, value))
    ]
    mode = environment.get("WANDB_MODE")
    if mode is not None and mode not in MODES:
        problems.append(
            SettingsError(
                f"there is no wandb mode {mode!r}",
                where="WANDB_MODE",
                hint=f"one of: {', '.join(MODES)}; or unset WANDB_MODE",
            )
        )
    return problems


def refusal(kind: str, value: str) -> str:
    """Describe why wandb does not accept a name; empty if it does.

    Args:
        kind: project, entity, group, tag or run id.
    """
    if not value.strip():
        return f"the wandb {kind} is empty"
    if len(value) > LENGTHS[kind]:
        return f"the wandb {kind} {quote(value)} has {len(value)} characters, more than {LENGTHS[kind]}"
    if found := [char for char in FORBIDDEN.get(kind, "") if char in value]:
        return f"the wandb {kind} {quote(value)} must not contain {' '.join(map(repr, found))}"
    if not value.isprintable():
        return f"the wandb {kind} {quote(value)} has characters that cannot be printed"
    return ""


def check_logger(config: Config) -> Iterator[NanolmError]:
    """Check the destination of a run that is logged to W&B."""
    if isinstance(config.logger, WandbConfig) and destination(config.logger).mode != "disabled":
        yield from check_wandb(config.logger)


def _mode(config: WandbConfig, environment: Mapping[str, str]) -> tuple[str, str]:
    """The mode, and the variable that sets it; an empty string for a setting."""
    if config.mode is not WandbMode.auto:
        return config.mode.name, ""
    if environment.get("WANDB_DISABLED", "").strip().lower() not in FALSE:
        return "disabled", "WANDB_DISABLED"
    mode = environment.get("WANDB_MODE") or "auto"
    return OLDER_MODES.get(mode, mode), "WANDB_MODE"


def _hint(where: str) -> str:
    if where.isupper():
        return f"set another value, or unset {where}"
    return f"give {where} another value" if where.startswith("-") else f"set {where} to another value, or logger=none"
