"""`nanolm wandb push`: upload complete runs to Weights & Biases."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from nanolm import option_types as types
from nanolm import terminal
from nanolm.analysis import collection
from nanolm.analysis.collection import Run
from nanolm.analysis.metrics import SUMMARY_FIELDS, compute_metrics
from nanolm.cli.arguments import add_runs
from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import check_wandb
from nanolm.errors import DiskError, NanolmError, RunError, ServerError, SettingsError, raise_all
from nanolm.option_types import Parser
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory
from nanolm.runs.loggers import reason_of
from nanolm.runs.summary import Summary, update_summary
from nanolm.terminal import visible

# Rows per second that a slow server accepts.
ROWS_PER_SECOND = 500


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "The rows come from metrics.jsonl, which is complete even if the run was killed; live logging to wandb may "
        "then have lost some."
    )
    add_runs(parser)
    parser.add_argument("--offline", action="store_true", help="write to RUN/wandb, for `wandb sync` to upload later")
    for name, help_text in (
        ("project", "default: the run's logger.project, else WANDB_PROJECT, else nanolm"),
        ("entity", "owner of the project (default: the run's logger.entity, else WANDB_ENTITY, else your account)"),
        ("group", "default: the run's logger.group, else the name of its sweep"),
    ):
        parser.add(f"--{name}", check=types.text, metavar="NAME", help=help_text)
    parser.add_argument("--keep-id", action="store_true", help="replace the run's earlier wandb run (default: add one)")
    help_text = "time to wait for an answer of the server"
    parser.add("--timeout", check=types.SECONDS, default=30, metavar="SECONDS", help=help_text)


def run(arguments: Namespace) -> None:
    """Send every run, each as its own wandb run, and print what was sent.

    A run that cannot be sent does not stop the others; a server that does not answer does.

    Raises:
        NanolmError: with the reason for every run that was not sent.
    """
    mode = "offline" if arguments.offline or os.environ.get("WANDB_MODE") == "offline" else "online"
    given = WandbConfig(
        project=arguments.project, entity=arguments.entity, group=arguments.group, init_timeout=arguments.timeout
    )
    terminal.ignore_write_errors()
    runs = collection.find(arguments.runs)
    raise_all(check_wandb(given, prefix="--"))
    if mode == "online" and not wandb_record.has_account():
        raise SettingsError(
            "not logged in to wandb",
            where="WANDB_API_KEY, or the netrc file written by `wandb login`",
            hint="run `wandb login`, or use --offline and upload later",
        )
    width = max(len(visible(run.name)) for run in runs)
    problems: list[NanolmError] = []
    for run in runs:
        try:
            sent = send(run, given, mode, arguments.keep_id)
        except ServerError as error:
            raise_all([*problems, error])
        except NanolmError as error:
            problems.append(error)
            continue
        terminal.write(f"{visible(run.name):<{width}}  {sent}")
    n_sent = len(runs) - len(problems)
    if n_sent and mode == "offline":
        print("written offline: upload with `wandb sync RUN/wandb/offline-run-...`")
    if problems and n_sent:
        print(f"{n_sent} of {len(runs)} runs sent")
    raise_all(problems)


def send(run: Run, given: WandbConfig, mode: str, keeps_id: bool) -> str:
    """Write a run's settings, metrics, baselines, samples and summary as one wandb run, and keep its id.

    Args:
        given: project, entity and group, None for those of the run; the seconds to wait for an answer of the server,
            and at the end for the rest of the upload (longer for many rows).
        mode: "online" or "offline".
        keeps_id: whether to replace the run's earlier wandb run instead of creating another.

    Returns:
        The number of rows, the first and last step, and the web page, or the folder in the run directory.

    Raises:
        RunError: the run is damaged, or another process writes to it.
        DiskError: the run directory cannot be written to.
        ServerError: the server does not answer, or refuses the run.
    """
    directory = RunDirectory(run.path)
    if run.faults:
        raise RunError("; ".join(run.faults), where=str(run.path), hint="this run was not sent")
    # wandb drops a row whose step is smaller than that of the row before.
    rows = sorted(directory.read_metrics(), key=lambda row: row.step)
    own: dict[str, Any] = {
        name: getattr(given, name) or run.settings.get(f"logger.{name}") for name in ("project", "entity", "group")
    }
    try:
        with directory.claim():
            try:
                record = wandb_record.begin(
                    dataclasses.replace(given, **own, tags=run.settings.get("logger.tags") or []),
                    directory,
                    run.settings,
                    mode=mode,
                    run_id=run.summary.wandb_id if keeps_id else None,
                    is_live=False,
                    group=run.summary.group,
                )
                references = wandb_record.baselines(run.summary)
                for row in rows:
                    record.log(wandb_record.values(row, references), step=row.step)
                timeout = given.init_timeout + len(rows) / ROWS_PER_SECOND
                wandb_record.end(record, directory, _summary(run), timeout)
            except Exception as error:  # wandb raises many kinds
                raise ServerError(
                    f"wandb did not accept the run: {reason_of(error)}",
                    where=str(run.path),
                    hint="try again later, or use --offline and upload later",
                ) from error
            update_summary(directory.summary, wandb_id=record.id, wandb_mode=mode)
    except OSError as error:
        raise DiskError(
            f"the run directory cannot be written to: {error.strerror or error}",
            where=str(run.path),
            hint="make it writable: the wandb id is stored there",
        ) from error
    place = str(record.url) if mode == "online" else os.path.relpath(Path(record.dir).parent, run.path)
    steps = f", steps {rows[0].step:,} to {rows[-1].step:,}" if rows else ""
    return f"{len(rows):>6,} rows{steps}  {visible(place)}"


def _summary(run: Run) -> Summary:
    """Return summary.json; values that a killed run could not write are computed from its rows."""
    found = compute_metrics(run)
    unknown = {name: getattr(found, name) for name in SUMMARY_FIELDS if getattr(run.summary, name) is None}
    return dataclasses.replace(run.summary, status=run.status, **unknown)
