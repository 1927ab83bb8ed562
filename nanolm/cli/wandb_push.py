"""`nanolm wandb push`: upload complete runs to Weights & Biases."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from nanolm import option_types as types
from nanolm import terminal
from nanolm.analysis import collection, wandb_rows
from nanolm.analysis.collection import Run
from nanolm.analysis.metrics import SUMMARY_FIELDS, compute_metrics
from nanolm.cli.arguments import add_runs
from nanolm.config.logger import WandbConfig
from nanolm.config.wandb_environment import check_wandb, destination, refusal
from nanolm.errors import (
    DiskError,
    NanolmError,
    Problems,
    RunError,
    ServerError,
    SettingsError,
    raise_all,
)
from nanolm.option_types import Parser, quote
from nanolm.runs import wandb_record
from nanolm.runs.directory import RunDirectory
from nanolm.runs.loggers import reason_of
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.summary import Summary, update_summary
from nanolm.terminal import visible
from nanolm.untrusted import damaged

# Rows per second that a slow server accepts.
ROWS_PER_SECOND = 500
# More than a million rows, which are all read into memory.
MAX_METRICS_BYTES = 256_000_000
# wandb stores a step in 64 bits.
MAX_STEP = 2**63


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "The rows come from metrics.jsonl, which is complete even if the run was killed; live logging to wandb may "
        "then have lost some. For a sweep with several seeds per setting, the mean, standard deviation and number of "
        "seeds of every metric are sent, too: one wandb run of the job type `seeds` per setting."
    )
    add_runs(parser)
    parser.add_argument("--offline", action="store_true", help="write to RUN/wandb, for `wandb sync` to upload later")
    for name, help_text in (
        ("project", "default: the run's logger.project, else WANDB_PROJECT, else nanolm"),
        ("entity", "owner of the project (default: WANDB_ENTITY, else your account; never the one that a run names)"),
        ("group", "default: the run's logger.group, else the name of its sweep"),
    ):
        parser.add(f"--{name}", check=types.text, metavar="NAME", help=help_text)
    parser.add_argument("--keep-id", action="store_true", help="replace the run's earlier wandb run (default: add one)")
    help_text = "time to wait for an answer of the server"
    parser.add("--timeout", check=types.SECONDS, default=30, metavar="SECONDS", help=help_text)


def run(arguments: Namespace) -> None:
    """Send every run, each as its own wandb run, and print what was sent.

    A run that cannot be sent does not stop the others; a server that fails for two runs in a row does.

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
    announced: set[str] = set()
    n_sent = 0
    for run in runs:
        try:
            sent = send(run, given, mode, arguments.keep_id, announced)
        except NanolmError as error:
            is_down = isinstance(error, ServerError) and bool(problems) and isinstance(problems[-1], ServerError)
            problems.append(error)
            if is_down:
                break
            continue
        n_sent += 1
        terminal.write(f"{visible(run.name):<{width}}  {sent}")
    if n_sent and not any(isinstance(error, ServerError) for error in problems):
        problems += _send_seed_summaries(runs, given, mode, announced)
    if n_sent and mode == "offline":
        print("written offline: upload each folder that is named above with `wandb sync FOLDER`")
    if problems and n_sent:
        print(f"{n_sent} of {len(runs)} runs sent")
        failed = Problems(problems)
        failed.exit_status = 1
        raise failed
    raise_all(problems)


def send(run: Run, given: WandbConfig, mode: str, keeps_id: bool, announced: set[str]) -> str:
    """Write a run's settings, metrics, baselines, samples and summary as one wandb run, and keep its id.

    Args:
        given: project, entity and group as given; the seconds to wait for an answer of the server, and at the end for
            the rest of the upload (longer for many rows).
        mode: "online" or "offline".
        keeps_id: whether to replace the run's earlier wandb run instead of creating another.
        announced: destinations that were printed; a new one is printed, before anything is sent to it.

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
    rows, samples, summary = _read_metrics(directory), wandb_record.read_samples(directory), _summary(run)
    config = _destination(run, given)
    run_id = run.summary.wandb_id if keeps_id else None
    try:
        with directory.claim():
            try:
                if mode == "online":
                    _announce(config, run_id, announced)
                record = wandb_record.begin(
                    config, directory, run.settings, mode=mode, run_id=run_id, is_live=False, group=run.summary.group
                )
                references = wandb_record.baselines(run.summary)
                for row in rows:
                    record.log(wandb_record.values(row, references), step=row.step)
                timeout = given.init_timeout + len(rows) / ROWS_PER_SECOND
                wandb_record.end(record, samples, summary, config, timeout)
            except NanolmError:
                raise
            except Exception as error:  # wandb raises many kinds
                # Any other kind is about what the run contains.
                kind = ServerError if isinstance(error, wandb_record.server_errors()) else RunError
                raise kind(
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


def _send_seed_summaries(runs: Sequence[Run], given: WandbConfig, mode: str, announced: set[str]) -> list[NanolmError]:
    """Send mean, standard deviation and number of seeds of the rows of each sweep. Return why one was not sent."""
    try:
        for summary in wandb_rows.seed_summaries(runs):
            config = _destination(summary.run, given)
            if mode == "online":
                _announce(config, None, announced)
            terminal.write(visible(f"{summary.name}  {wandb_rows.send(summary, config, mode)}"))
    except NanolmError as error:
        return [error]
    except Exception as error:  # wandb raises many kinds
        problem = f"wandb did not accept the summary of seeds: {reason_of(error)}"
        return [ServerError(problem, hint="try again later, or use --offline and upload later")]
    return []


def _read_metrics(directory: RunDirectory) -> list[MetricsRow]:
    """Read all rows, in the order of their steps: wandb drops a row whose step is smaller than that of the row before.

    Raises:
        RunError: metrics.jsonl is damaged, or too large to be sent.
    """
    path = directory.metrics
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_METRICS_BYTES:
        raise RunError(
            f"metrics.jsonl has {size:,} bytes, more than the {MAX_METRICS_BYTES:,} that are sent to wandb",
            where=str(path),
            hint="log a run of this size while it trains, with logger=wandb",
        )
    rows = sorted(directory.read_metrics(), key=lambda row: row.step)
    if rows and not 0 <= rows[0].step <= rows[-1].step < MAX_STEP:
        wrong = rows[0].step if rows[0].step < 0 else rows[-1].step
        raise damaged(path, f"it has a row of step {wrong}")
    return rows


def _destination(run: Run, given: WandbConfig) -> WandbConfig:
    """Return the project, entity, group and tags of a run.

    The entity is never that of the run: a downloaded run would be sent to whoever made it.

    Raises:
        RunError: wandb would refuse a name in the run.
    """
    project = given.project or run.settings.get("logger.project")
    group = given.group or run.settings.get("logger.group")
    tags = run.settings.get("logger.tags") or []
    named = [("project", project), ("group", group), ("group", run.summary.group)]
    named += [("tag", tag) for tag in tags] if isinstance(tags, list) else [("tag", tags)]
    for kind, value in named:
        problem = refusal(kind, value) if isinstance(value, str) else f"the wandb {kind} {quote(str(value))} is no text"
        if value is not None and problem:
            hint = "correct it in config.yaml" + ("" if kind == "tag" else f", or give --{kind} NAME")
            raise RunError(problem, where=str(run.path), hint=hint)
    is_private = run.settings.get("logger.private") is not False
    return dataclasses.replace(given, project=project, group=group, tags=tags, private=is_private)


def _announce(config: WandbConfig, run_id: str | None, announced: set[str]) -> None:
    """Print where a run will be sent, unless that was printed before."""
    settings, goal = wandb_record.load_settings(), destination(config)
    entity = goal.entity or settings.entity or "(your default entity)"
    place = f"{settings.app_url}/{entity}/{goal.project}"
    text = f"sending to {place}" if run_id is None else f"replacing {place}/runs/{run_id}"
    if text not in announced:
        announced.add(text)
        terminal.write(visible(text))


def _summary(run: Run) -> Summary:
    """Return summary.json; values that a killed run could not write are computed from its rows."""
    found = compute_metrics(run)
    unknown = {name: getattr(found, name) for name in SUMMARY_FIELDS if getattr(run.summary, name) is None}
    return dataclasses.replace(run.summary, status=run.status, **unknown)
