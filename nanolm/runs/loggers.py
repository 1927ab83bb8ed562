"""Where rows go besides metrics.jsonl. No caller asks which logger is on, and none can stop a run."""

from __future__ import annotations

import math
import netrc
import os
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from nanolm.config import LoggerConfig, NoLoggerConfig, WandbConfig, WandbMode
from nanolm.registry import LOGGERS
from nanolm.runs.directory import RunDirectory

Warn = Callable[[str], None]


class Logger(Protocol):
    """What every logger does."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes a row of metrics.jsonl."""

    def close(self, summary: dict[str, Any]) -> None:
        """Ends the record with the run's summary."""

    def about(self) -> dict[str, Any]:
        """What summary.json keeps of it, so that a resumed run goes on with the same record."""


def open_logger(config: LoggerConfig, run: RunDirectory, about: dict[str, Any], warn: Warn) -> Logger:
    """The logger that the settings name; a failing one is replaced by none, with one warning.

    Args:
        about: "config" (flat settings) and "run_id" (None for a new record).
        warn: says a line to the user.
    """
    try:
        return LOGGERS[config.name](config, run, about, warn)
    except Exception as error:
        warn(f"{config.name} is off, the run goes on without it: {type(error).__name__}: {_first_line(error)}")
        return NoLogger()


class NoLogger:
    """Nothing besides metrics.jsonl."""

    def log(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def close(self, summary: dict[str, Any]) -> None:
        """Nothing."""

    def about(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@LOGGERS.register("none")
def no_logger(config: NoLoggerConfig, run: RunDirectory, about: dict[str, Any], warn: Warn) -> NoLogger:
    """metrics.jsonl is enough."""
    return NoLogger()


@LOGGERS.register("wandb")
def wandb_logger(config: WandbConfig, run: RunDirectory, about: dict[str, Any], warn: Warn) -> WandbLogger:
    """A run of Weights & Biases, offline when there is no account or no answer."""
    return WandbLogger(config, run, about, warn)


class WandbLogger:
    """One wandb run for one run directory, however often that is resumed."""

    # Seconds between two training rows: a call costs a tenth of a millisecond, and a bigram makes thousands of
    # steps a second. What is left out here is in metrics.jsonl.
    PACE = 0.1
    # Seconds that the end of a run waits for the last rows to be sent.
    CLOSING_PATIENCE = 30.0

    def __init__(self, config: WandbConfig, run: RunDirectory, about: dict[str, Any], warn: Warn) -> None:
        import wandb

        self._warn = warn
        self._wandb = wandb
        mode = config.mode
        if mode is WandbMode.auto:
            mode = WandbMode.online if has_account() else WandbMode.offline
        # The environment's own word (WANDB_MODE=disabled, say) goes first, as everywhere with wandb.
        modes = [os.environ.get("WANDB_MODE") or mode.name]
        if modes[0] == "online":
            modes.append("offline")
        for attempt in modes:
            try:
                self._run = wandb.init(
                    project=config.project,
                    entity=config.entity,
                    group=config.group,
                    name=run.path.resolve().name,
                    id=about["run_id"],
                    resume="allow",
                    dir=_folder(run.wandb),
                    config=about["config"],
                    mode=attempt,  # type: ignore[arg-type]
                    settings=wandb.Settings(
                        init_timeout=config.patience,
                        console="off",
                        silent=True,
                        quiet=True,
                        x_disable_stats=True,
                    ),
                )
                break
            except Exception as error:
                if attempt == modes[-1]:
                    raise
                warn(f"wandb does not answer ({_first_line(error)}); the run is recorded offline in {run.wandb}")
        self.run_id = str(self._run.id)
        self.mode = attempt
        self._failed = False
        self._last_row = -math.inf

    def log(self, row: dict[str, Any]) -> None:
        """The row under its split's name (train/loss, val/bits_per_byte, ...); training rows at most ten a second."""
        now = time.monotonic()
        if self._failed or (row["split"] == "train" and now - self._last_row < self.PACE):
            return
        self._last_row = now if row["split"] == "train" else self._last_row
        values = {f"{row['split']}/{key}": value for key, value in row.items() if key not in ("split", "step")}
        try:
            self._run.log(values, step=row["step"])
        except Exception as error:
            self._fail(error)

    def close(self, summary: dict[str, Any]) -> None:
        """Fills the summary and ends the record; a server that does not answer is given up after a while."""
        if self._failed:
            return

        def finish() -> None:
            try:
                for key, value in summary.items():
                    self._run.summary[key] = value
                self._run.finish(exit_code=0 if summary.get("status") in ("completed", "interrupted", "pruned") else 1)
            except Exception as error:
                self._fail(error)

        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(self.CLOSING_PATIENCE)
        if thread.is_alive():
            self._warn("wandb does not answer; what it has not sent is in metrics.jsonl")

    def about(self) -> dict[str, Any]:
        """The id that the next session goes on with."""
        return {"wandb_id": self.run_id, "wandb_mode": self.mode}

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self._warn(f"wandb is off from here on: {type(error).__name__}: {_first_line(error)}")


def has_account() -> bool:
    """Whether an API key is at hand, in the environment or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if name and netrc.netrc(Path(name).expanduser()).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _folder(path: Path) -> str:
    """wandb makes its own folder `wandb` in the one it is given, which must exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return str(path.parent.resolve())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
