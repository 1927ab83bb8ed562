"""Experiment loggers."""

from __future__ import annotations

import dataclasses

from nanolm.config.fields import MISSING, Choice, declare, setting
from nanolm.registry import LOGGERS


@dataclasses.dataclass
class LoggerConfig:
    """Settings of every logger. metrics.jsonl is written whichever logger is chosen."""

    name: str = MISSING


@dataclasses.dataclass
class NoLoggerConfig(LoggerConfig):
    """No logger except metrics.jsonl and the console."""

    name: str = "none"


class WandbMode(Choice):
    """Modes of Weights & Biases."""

    auto = "auto", "$WANDB_MODE or $WANDB_DISABLED if set; else online with an API key, offline without."
    online = "online", "Send to the server."
    offline = "offline", "Write to the run directory only."


@dataclasses.dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases. A failing or slow server never stops a run or changes its results."""

    name: str = "wandb"
    project: str | None = setting(None, doc="W&B project. null: $WANDB_PROJECT, else nanolm.")
    entity: str | None = setting(None, doc="W&B user or team. null: $WANDB_ENTITY, else the default of the account.")
    group: str | None = setting(
        None, doc="W&B group. null: $WANDB_RUN_GROUP, else the directory of the sweep that the run is a job of."
    )
    tags: list[str] = setting(default_factory=list, doc="W&B tags. []: $WANDB_TAGS.")
    mode: WandbMode = setting(WandbMode.auto, doc="Where metrics are sent.")
    init_timeout: float = setting(
        5.0, doc="Seconds to wait for the server before the run continues offline.", gt=0, le=86_400
    )
    private: bool = setting(
        True,
        doc="Leave out of the record: host and user name, folders, command line, git remote and hardware. "
        "false: as wandb collects them.",
    )


declare(LOGGERS, LoggerConfig)
