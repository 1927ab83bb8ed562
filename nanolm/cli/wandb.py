"""`nanolm wandb push`: the whole record of a run, from its directory to Weights & Biases."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nanolm import terminal
from nanolm.analysis import collection
from nanolm.analysis.collection import Run
from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import check_wandb
from nanolm.errors import DiskError, NanolmError, RunError, ServerError, SettingsError, raise_all
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory
from nanolm.runs.loggers import reason_of
from nanolm.terminal import visible

# Rows that a server which is slow, but there, takes in a second.
ROWS_A_SECOND = 500


@dataclasses.dataclass(frozen=True)
class Target:
    """Where records go; None leaves it to the run's own settings.

    Attributes:
        mode: "online" or "offline".
        keeps_id: whether a record takes the place of the one that the run had, or stands beside it.
        patience: seconds that the server has to answer, and at the end to take what it has not taken by then; there it
            has more for many rows.
    """

    mode: str
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    keeps_id: bool = False
    patience: float = 30.0


@dataclasses.dataclass(frozen=True)
class Sent:
    """What became of a run: how many rows of which steps are in its record, and where that is.

    Attributes:
        place: its page, or its folder in the run directory.
    """

    n_rows: int
    steps: tuple[int, int] | None
    place: str


def push(paths: Sequence[str], target: Target) -> int:
    """Sends every run at or below the paths, each as a record of its own, and says what it sent.

    A run that cannot be sent lets the others go.

    Returns:
        The exit status.

    Raises:
        NanolmError: what was not sent and why; a server that does not answer ends it all.
    """
    terminal.ignore_write_errors()
    runs = collection.find(paths)
    settings = WandbConfig(project=target.project, entity=target.entity, group=target.group)
    raise_all(check_wandb(settings, prefix="--"))
    _require_account(target)
    width = max(len(visible(run.name)) for run in runs)
    problems: list[NanolmError] = []
    for run in runs:
        try:
            sent = send(run, target)
        except ServerError as error:
            raise_all([*problems, error])
        except NanolmError as error:
            problems.append(error)
            continue
        steps = f", steps {sent.steps[0]:,} to {sent.steps[1]:,}" if sent.steps else ""
        terminal.write(f"{visible(run.name):<{width}}  {sent.n_rows:>6,} rows{steps}  {visible(sent.place)}")
    n_sent = len(runs) - len(problems)
    if n_sent and target.mode == "offline":
        print("written offline: `wandb sync RUN/wandb/offline-run-...` sends one")
    if problems and n_sent:
        print(f"{n_sent} of {len(runs)} runs sent")
    raise_all(problems)
    return 0


def send(run: Run, target: Target) -> Sent:
    """Writes a run's settings, rows, reference lines, samples and summary as one record, and keeps its id.

    Raises:
        RunError: the run is damaged, or a process writes to it.
        DiskError: its directory cannot be written to.
        ServerError: the server does not answer, or refuses.
    """
    directory = RunDirectory(run.path)
    if run.faults:
        raise RunError("; ".join(run.faults), where=str(run.path), hint="nothing of this run was sent")
    rows = _rows(run)
    settings = _settings(run, target)
    had = run.summary.get("wandb_id") if target.keeps_id else None
    try:
        with directory.claim():
            with _refusals(run):
                record = wandb_record.begin(
                    settings,
                    directory,
                    run.settings,
                    mode=target.mode,
                    run_id=had,
                    is_live=False,
                    group=run.summary.get("group"),
                )
                references = wandb_record.reference_lines(run.summary)
                for row in rows:
                    record.log(wandb_record.values(row, references), step=row["step"])
                wandb_record.end(record, directory, _summary(run, rows), target.patience + len(rows) / ROWS_A_SECOND)
            about = {"wandb_id": record.id, "wandb_mode": target.mode}
            directory.write_summary({**directory.read_summary(), **about})
    except OSError as error:
        raise DiskError(
            f"the run directory cannot be written to: {error.strerror or error}",
            where=str(run.path),
            hint="the record and its id are kept there",
        ) from error
    place = str(record.url) if target.mode == "online" else os.path.relpath(Path(record.dir).parent, run.path)
    return Sent(len(rows), (rows[0]["step"], rows[-1]["step"]) if rows else None, place)


def _require_account(target: Target) -> None:
    if target.mode == "online" and not wandb_record.has_account():
        raise SettingsError(
            "no account of wandb is at hand",
            where="WANDB_API_KEY, or the netrc file that `wandb login` writes",
            hint="`wandb login`, or --offline to write the records now and send them another time",
        )


def _rows(run: Run) -> list[dict[str, Any]]:
    """All rows in the order of their steps: wandb drops a step that is smaller than the one before."""
    rows = collection.rows(run)
    for number, row in enumerate(rows, start=1):
        if not (isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("split"), str)):
            raise RunError(
                f"line {number} of metrics.jsonl is damaged: it has no step and split",
                where=str(RunDirectory(run.path).metrics),
                hint="nothing of this run was sent",
            )
    return sorted(rows, key=lambda row: row["step"])


def _settings(run: Run, target: Target) -> WandbConfig:
    """What is asked for, else what the run was trained with; what both leave open is up to the environment."""
    return WandbConfig(
        project=target.project or run.settings.get("logger.project"),
        entity=target.entity or run.settings.get("logger.entity"),
        group=target.group or run.settings.get("logger.group"),
        tags=run.settings.get("logger.tags") or [],
        init_timeout=target.patience,
    )


def _summary(run: Run, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """summary.json; of a run that was killed, what its rows say in place of what it could not write."""
    losses = [row["loss"] for row in rows if row["split"] == "val"]
    found: dict[str, Any] = {"step": rows[-1]["step"] if rows else 0}
    if losses:
        found |= {"best_val_loss": min(losses), "final_val_loss": losses[-1]}
    known = {key: value for key, value in run.summary.items() if value is not None}
    return {**found, **known, "status": run.status}


@contextlib.contextmanager
def _refusals(run: Run) -> Iterator[None]:
    """Says in our words what wandb raises, and it raises many kinds."""
    try:
        yield
    except Exception as error:
        raise ServerError(
            f"wandb did not take the run: {reason_of(error)}",
            where=str(run.path),
            hint="try again when it answers, or --offline to write the record now and send it another time",
        ) from error
