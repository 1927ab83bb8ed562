"""Experiment loggers. A logger that fails never stops a run."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from nanolm.config.logger import LoggerConfig, NoLoggerConfig, WandbConfig
from nanolm.config.wandb_environment import destination, refusal
from nanolm.errors import RunError
from nanolm.registry import LOGGERS
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory
from nanolm.runs.metrics import TRAIN, MetricsRow
from nanolm.runs.summary import Summary

Warn = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class About:
    """What a logger needs to know about its run.

    Attributes:
        config: the settings by dotted key.
        summary: the summary at the start: it has the group, the baselines, and the wandb id of an earlier session.
    """

    config: dict[str, Any]
    summary: Summary = dataclasses.field(default_factory=Summary)


class Logger(Protocol):
    """The interface of experiment loggers."""

    def log(self, row: MetricsRow) -> None:
        """Log a row of metrics.jsonl."""

    def close(self, summary: Summary) -> None:
        """Log the final summary and close the logger."""

    def about(self) -> dict[str, Any]:
        """Return fields for summary.json that let a resumed run continue the same record."""


def open_logger(config: LoggerConfig, run: RunDirectory, about: About, warn: Warn) -> Logger:
    """Open the logger that the settings name, or warn and return NoLogger if it fails.

    Args:
        warn: shows a message to the user.
    """
    try:
        return LOGGERS[config.name](config, run, about, warn)
    except Exception as error:
        warn(f"{config.name} is off, training continues without it: {type(error).__name__}: {reason_of(error)}")
        return NoLogger()


class NoLogger:
    """A logger that does nothing."""

    def log(self, row: MetricsRow) -> None: ...

    def close(self, summary: Summary) -> None: ...

    def about(self) -> dict[str, Any]:
        return {}


@LOGGERS.register("none")
def no_logger(config: NoLoggerConfig, run: RunDirectory, about: About, warn: Warn) -> NoLogger:
    """Only metrics.jsonl."""
    return NoLogger()


@LOGGERS.register("wandb")
class WandbLogger:
    """Weights & Biases: one wandb run per run directory, offline without an account or an answer of the server."""

    # Minimum seconds between two training rows: logging one takes 0.1 ms, and a bigram trains thousands of steps per
    # second. The others are in metrics.jsonl only.
    MIN_INTERVAL = 0.1
    # Seconds to wait at the end for the last rows to be sent.
    CLOSE_TIMEOUT = 30.0

    def __init__(self, config: WandbConfig, run: RunDirectory, about: About, warn: Warn) -> None:
        self._config = config
        self._run = run
        self._warn = warn
        self._baselines = wandb_record.baselines(about.summary)
        self._goal = goal = destination(config)
        named = [name for name in goal.from_environment if name not in ("WANDB_MODE", "WANDB_DISABLED")]
        source = f"from the environment: {', '.join(named)}"
        if config.entity and about.summary.step is not None:
            # The config.yaml of a downloaded run may name its maker.
            named, source = ["entity"], "as the resumed run says; logger.entity= chooses another"
        if named:
            place = f"{goal.entity}/{goal.project}" if goal.entity else goal.project
            warn(f"wandb project {place}, {source}")
        run_id = about.summary.wandb_id
        if run_id is not None and (problem := refusal("run id", run_id)):
            warn(f"a new wandb run is created: {problem}, in summary.json")
            run_id = None
        modes = [goal.mode if goal.mode != "auto" else "online" if wandb_record.has_account() else "offline"]
        if modes[0] == "online":
            modes.append("offline")
        for attempt in modes:
            try:
                self._record = wandb_record.begin(
                    config,
                    run,
                    about.config,
                    mode=attempt,
                    run_id=run_id,
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
        self._failed = False
        self._last_row = -math.inf

    def log(self, row: MetricsRow) -> None:
        """Log a row; at most ten training rows per second."""
        now = time.monotonic()
        if self._failed or (row.split == TRAIN and now - self._last_row < self.MIN_INTERVAL):
            return
        self._last_row = now if row.split == TRAIN else self._last_row
        try:
            self._record.log(wandb_record.values(row, self._baselines), step=row.step)
        except Exception as error:
            self._fail(error)

    def close(self, summary: Summary) -> None:
        """Log the summary and finish the record, waiting at most CLOSE_TIMEOUT for the server."""
        if self._failed:
            return
        try:
            wandb_record.end(self._record, self._samples(), summary, self._config, self.CLOSE_TIMEOUT)
        except TimeoutError:
            self._warn("wandb does not answer; what it has not sent is in metrics.jsonl")
        except Exception as error:
            self._fail(error)

    def about(self) -> dict[str, Any]:
        """Return the wandb id, mode and project."""
        entity = {"wandb_entity": self._goal.entity} if self._goal.entity else {}
        return {"wandb_id": self.run_id, "wandb_mode": self.mode, "wandb_project": self._goal.project, **entity}

    def _samples(self) -> bytes:
        try:
            return wandb_record.read_samples(self._run)
        except RunError as error:
            self._warn(f"the samples are not in wandb: {error.found}")
            return b""

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._warn(f"wandb is off from now on: {type(error).__name__}: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """The message of an error on one line."""
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
