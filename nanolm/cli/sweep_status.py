"""`nanolm sweep status`: which jobs of a sweep are done, run, failed and are left, and when it will end."""

from __future__ import annotations

import datetime
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nanolm import option_types as types
from nanolm.cli.arguments import add_json
from nanolm.errors import SettingsError
from nanolm.json_text import dump_json
from nanolm.option_types import Parser
from nanolm.wording import ESTIMATE, format_estimate

if TYPE_CHECKING:
    from nanolm.sweeps.status import SweepStatus

# Seconds between two tables of --watch.
INTERVAL = 2.0


def add_arguments(parser: Parser) -> None:
    parser.describe(
        "Everything is read from the folder of the sweep, on any machine that sees it. The folders of jobs that were "
        "not started are removed when the sweep ends, so that these are then not counted. The end is estimated for as "
        "many jobs at a time as now."
    )
    parser.add("folder", check=types.nonempty, metavar="FOLDER", help="the folder of a sweep, such as outputs/sweep")
    parser.add_argument("--watch", action="store_true", help="show a live table until every job is done, or Ctrl-C")
    add_json(parser)


def run(arguments: Namespace) -> None:
    from nanolm.sweeps.status import read_status

    if arguments.watch and (arguments.json or not sys.stdout.isatty()):
        other = "--json" if arguments.json else "an output that is no terminal"
        raise SettingsError(
            f"--watch has no use with {other}", where="--watch", hint="leave it out, and repeat the command"
        )
    status = read_status(arguments.folder)
    if arguments.json:
        print(dump_json(status.as_dict()))
    elif arguments.watch:
        _watch(arguments.folder, status)
    else:
        from nanolm.tables import Console

        Console().print(_group(status), soft_wrap=True)


def _watch(folder: str, status: SweepStatus) -> None:
    from rich.live import Live

    from nanolm.sweeps.states import State
    from nanolm.sweeps.status import LEFT, read_status
    from nanolm.tables import Console

    with Live(_group(status), console=Console(), auto_refresh=False, vertical_overflow="visible") as live:
        while status.of(State.running, *LEFT):
            time.sleep(INTERVAL)
            status = read_status(folder)
            live.update(_group(status), refresh=True)


def _group(status: SweepStatus) -> Any:
    from rich.console import Group

    return Group(*_parts(status))


def _parts(status: SweepStatus) -> Iterator[Any]:
    from nanolm.sweeps.states import State
    from nanolm.tables import Table, cell

    running, failed = status.of(State.running), status.of(State.failed)
    yield cell(f"{status.folder}: {status.describe(datetime.datetime.now())}", "bold")
    if (best := status.best) is not None:
        unit = " bits/byte" if status.metric == "bits_per_byte" else ""
        sign = ESTIMATE * (best.summary.best_val_sample is not None)
        yield cell(f"best so far: {sign}{getattr(best.summary, status.metric):.4f}{unit}, {best.name}")
    if running:
        table = Table(["running", "step", "val loss", "for", "left", "where"], "lRRRRl")
        for job in running:
            loss, left, where = job.summary.best_val_loss, job.seconds_left, job.holder
            table.add_row(
                job.name,
                f"{job.step:,}" + (f" of {job.summary.max_steps:,}" if job.summary.max_steps else ""),
                "" if loss is None else f"{ESTIMATE * (job.summary.best_val_sample is not None)}{loss:.4f}",
                "" if job.running_for is None else format_estimate(job.running_for),
                "" if left is None else format_estimate(left),
                (f"{where.host}, process {where.process}" if where else "") + (f", GPU {job.gpu}" if job.gpu else ""),
            )
        yield table
    ended = [*failed, *status.of(State.diverged)]
    if ended:
        table = Table(["failed or diverged", "reason"], "ll")
        for job in ended:
            table.add_row(job.name, cell(job.error.splitlines()[0] if job.error else "", "red"))
        yield table
