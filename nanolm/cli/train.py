"""`nanolm train`: train a model, resume a run, or run a sweep (-m)."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from nanolm import terminal
from nanolm.errors import SettingsError
from nanolm.torchrun import rank, world_size

if TYPE_CHECKING:
    from nanolm.compose import ComposedCommand


def run(arguments: list[str]) -> int:
    """Run the command; return the exit status.

    Raises:
        NanolmError: the command line has a mistake, or the run failed.
    """
    started = time.perf_counter()
    from nanolm.compose import compose_command, warnings_about
    from nanolm.compose.hydra_commands import parse_flags, print_answer, prints_something

    flags = parse_flags(arguments)
    if flags.help:
        from nanolm.cli.train_help import train_help

        print(train_help(flags.overrides, flags.config_dir), end="")
        return 0
    from nanolm.training.destination import resumed_config

    resumes = flags.cfg or not (flags.multirun or prints_something(flags))
    saved = resumed_config(flags.overrides) if resumes else None
    if prints_something(flags):
        print_answer(flags, saved)
        return 0
    command = compose_command(flags.overrides, flags.config_dir, flags.multirun, saved)
    if flags.multirun or not command.launch.dry_run:
        terminal.ignore_write_errors()
    for warning in warnings_about(command, flags.config_dir) if rank() == 0 else []:
        terminal.say(f"nanolm: {warning}")
    if flags.multirun:
        if world_size() > 1:
            raise SettingsError(
                f"-m makes many runs, and torchrun started {world_size()} processes for one",
                where="the command line",
                hint="use torchrun for each run, or -m without torchrun",
            )
        from nanolm.compose.hydra_commands import run_sweep
        from nanolm.sweeps.driver import SweepResult
        from nanolm.sweeps.job import SweepJob

        job = SweepJob(config_dir=flags.config_dir, profile=command.launch.profile)
        result = run_sweep(flags, command.sweep_directory, job)
        # Sweepers of other packages return something else.
        return result.exit_status if isinstance(result, SweepResult) else 0
    return _train(command, started)


def _train(command: ComposedCommand, started: float) -> int:
    """Train, or make a dry run; return the exit status.

    Args:
        started: when the command started, by time.perf_counter.
    """
    from nanolm.data.download import only_if_asked
    from nanolm.training.launch import claimed, nothing_to_do

    with claimed(command) as (run, start, ranks):
        if start.completed_step is not None:
            if ranks.is_main:
                terminal.say(nothing_to_do(run, start))
            return 0
        asked = command.given if start.is_from_run else None
        if command.launch.dry_run:
            from nanolm.training.dry_run import dry_run, print_estimate

            with contextlib.nullcontext() if asked is None else only_if_asked(asked):
                estimate = dry_run(start.config, run, ranks=ranks, parent=start.parent)
            if ranks.is_main:
                print_estimate(estimate)
            return 0
        from nanolm.runs.result_table import print_result_table
        from nanolm.training.trainer import train

        outcome = train(
            start.config,
            run,
            choices=start.choices,
            changes=start.changes,
            ranks=ranks,
            parent=start.parent,
            profile=command.launch.profile,
            asked=asked,
            started=started,
        )
        if ranks.is_main:
            print_result_table(outcome.summary, run, outcome.sample, outcome.prompt, start.config.plugins)
        return outcome.exit_status
