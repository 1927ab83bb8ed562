"""Who is told of a run."""

from __future__ import annotations

import dataclasses
import enum

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import LOGGERS


@dataclasses.dataclass
class LoggerConfig:
    """What every logger has. metrics.jsonl is written whatever is chosen here."""

    name: str = MISSING


@dataclasses.dataclass
class NoLoggerConfig(LoggerConfig):
    """metrics.jsonl and the console only."""

    name: str = "none"


class WandbMode(enum.Enum):
    """auto: online when there is an account (an API key) and it answers, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"


@dataclasses.dataclass
class WandbConfig(LoggerConfig):
    """Weights & Biases. It never stops a run and never changes one."""

    name: str = "wandb"
    # null: $WANDB_PROJECT, else nanolm
    project: str | None = None
    # null: $WANDB_ENTITY, else the account's own
    entity: str | None = None
    # null: $WANDB_RUN_GROUP, else the folder of the sweep that the run is a job of
    group: str | None = None
    # empty: $WANDB_TAGS
    tags: list[str] = dataclasses.field(default_factory=list)
    # auto: $WANDB_MODE or $WANDB_DISABLED, else online with an account
    mode: WandbMode = WandbMode.auto
    # Seconds to wait for the server before the run goes on offline.
    init_timeout: float = bounded(5.0, gt=0, le=86_400)


declare(LOGGERS, NoLoggerConfig, WandbConfig)
