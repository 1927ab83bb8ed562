"""Where rows go besides metrics.jsonl. No caller asks which logger is on, and none can stop a run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from nanolm.config.logger import LoggerConfig, NoLoggerConfig, WandbConfig
from nanolm.config.wandb_environment import destination
from nanolm.registry import LOGGERS
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import TRAIN, MetricsRow
from nanolm.runs.summary import Summary
from nanolm.runs.wandb_record import has_account

Warn = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class About:
    """What a logger is told of its run.

    Attributes:
        config: the settings by dotted key.
        summary: summary.json as it stands when the run begins or goes on: the sweep that it is a job of (group), what
            an earlier session had from `Logger.about`, and the reference lines.
    """

    config: dict[str, Any]
    summary: Summary = dataclasses.field(default_factory=Summary)


class Logger(Protocol):
    """What every logger does."""

    def log(self, row: MetricsRow) -> None:
        """Takes a row of metrics.jsonl."""

    def close(self, summary: Summary) -> None:
        """Ends the record with the run's summary."""

    def about(self) -> dict[str, Any]:
        """What summary.json keeps of it, so that a resumed run goes on with the same record."""


def open_logger(config: LoggerConfig, run: RunDirectory, about: About, warn: Warn) -> Logger:
    """The logger that the settings name; a failing one is replaced by none, with one warning.

    Args:
        about: what it is told of the run.
        warn: says a line to the user.
    """
    try:
        return LOGGERS[config.name](config, run, about, warn)
    except Exception as error:
        warn(f"{config.name} is off, the run goes on without it: {type(error).__name__}: {reason_of(error)}")
        return NoLogger()


class NoLogger:
    """Nothing besides metrics.jsonl."""

    def log(self, row: MetricsRow) -> None:
        """Nothing."""

    def close(self, summary: Summary) -> None:
        """Nothing."""

    def about(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@LOGGERS.register("none")
def no_logger(config: NoLoggerConfig, run: RunDirectory, about: About, warn: Warn) -> NoLogger:
    """metrics.jsonl is enough."""
    return NoLogger()


@LOGGERS.register("wandb")
def wandb_logger(config: WandbConfig, run: RunDirectory, about: About, warn: Warn) -> WandbLogger:
    """A run of Weights & Biases, offline when there is no account or no answer."""
    return WandbLogger(config, run, about, warn)


class WandbLogger:
    """One wandb run for one run directory, however often that is resumed."""

    # Seconds between two training rows: a call costs a tenth of a millisecond, and a bigram makes thousands of
    # steps a second. What is left out here is in metrics.jsonl.
    PACE = 0.1
    # Seconds that the end of a run waits for the last rows to be sent.
    CLOSING_PATIENCE = 30.0

    def __init__(self, config: WandbConfig, run: RunDirectory, about: About, warn: Warn) -> None:
        self._run = run
        self._warn = warn
        self._references = wandb_record.baselines(about.summary)
        goal = destination(config)
        if named := [name for name in goal.from_environment if name not in ("WANDB_MODE", "WANDB_DISABLED")]:
            place = f"{goal.entity}/{goal.project}" if goal.entity else goal.project
            warn(f"wandb project {place}, from the environment: {', '.join(named)}")
        modes = [goal.mode if goal.mode != "auto" else "online" if has_account() else "offline"]
        if modes[0] == "online":
            modes.append("offline")
        for attempt in modes:
            try:
                self._record = wandb_record.begin(
                    config,
                    run,
                    about.config,
                    mode=attempt,
                    run_id=about.summary.wandb_id,
                    is_live=True,
                    group=about.summary.group,
                )
                break
            except Exception as error:
                if attempt == modes[-1]:
                    raise
                warn(f"wandb does not answer ({reason_of(error)}); the run is recorded offline in {run.wandb}")
        self.run_id = str(self._record.id)
        self.mode = attempt
        self._goal = goal
        self._failed = False
        self._last_row = -math.inf

    def log(self, row: MetricsRow) -> None:
        """The row under wandb_record's names; training rows at most ten a second."""
        now = time.monotonic()
        if self._failed or (row.split == TRAIN and now - self._last_row < self.PACE):
            return
        self._last_row = now if row.split == TRAIN else self._last_row
        try:
            self._record.log(wandb_record.values(row, self._references), step=row.step)
        except Exception as error:
            self._fail(error)

    def close(self, summary: Summary) -> None:
        """Fills the summary and ends the record; a server that does not answer is given up after a while."""
        if self._failed:
            return
        try:
            wandb_record.end(self._record, self._run, summary, self.CLOSING_PATIENCE)
        except TimeoutError:
            self._warn("wandb does not answer; what it has not sent is in metrics.jsonl")
        except Exception as error:
            self._fail(error)

    def about(self) -> dict[str, Any]:
        """The id that the next session goes on with, and where the record is."""
        entity = {"wandb_entity": self._goal.entity} if self._goal.entity else {}
        return {"wandb_id": self.run_id, "wandb_mode": self.mode, "wandb_project": self._goal.project, **entity}

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._warn(f"wandb is off from here on: {type(error).__name__}: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """The whole message of an error, on one line."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
