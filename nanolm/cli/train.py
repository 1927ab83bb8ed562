"""`nanolm train`: train a model, resume a run, or run a sweep (-m)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from nanolm import terminal
from nanolm.errors import SettingsError, explain_os_error
from nanolm.torchrun import rank, world_size

if TYPE_CHECKING:
    from nanolm.compose import ComposedCommand
    from nanolm.training.distributed.ranks import Ranks


def run(arguments: list[str]) -> int:
    """Run the command; return the exit status.

    Raises:
        NanolmError: the command line has a mistake, or the run failed.
    """
    from nanolm.compose import compose_command, hidden_options
    from nanolm.compose.hydra_commands import parse_flags, print_answer, prints_something

    flags = parse_flags(arguments)
    if flags.help:
        from nanolm.cli.train_help import train_help

        print(train_help(flags.overrides, flags.config_dir), end="")
        return 0
    resumes = flags.cfg or not (flags.multirun or prints_something(flags))
    saved = _resumed_config(flags.overrides) if resumes else None
    if prints_something(flags):
        print_answer(flags, saved)
        return 0
    command = compose_command(flags.overrides, flags.config_dir, flags.multirun, saved)
    if flags.multirun or not command.launch.dry_run:
        terminal.ignore_write_errors()
    for name in hidden_options(flags.config_dir) if flags.config_dir and rank() == 0 else []:
        terminal.say(f"nanolm: {flags.config_dir}/{name} is not read: nanolm has its own {name}")
    for variable, settings in command.from_environment.items() if rank() == 0 else []:
        terminal.say(
            f"nanolm: warning: the value of the environment variable {variable} becomes part of {', '.join(settings)}, "
            "which is saved in config.yaml and sent to the loggers: leave it out if it is secret"
        )
    if flags.multirun:
        if world_size() > 1:
            raise SettingsError(
                f"-m makes many runs, and torchrun started {world_size()} processes for one",
                where="the command line",
                hint="use torchrun for each run, or -m without torchrun",
            )
        from nanolm.compose.hydra_commands import run_sweep
        from nanolm.sweeps.job import SweepJob

        run_sweep(flags, command.sweep_directory, SweepJob(config_dir=flags.config_dir, profile=command.launch.profile))
        return 0
    from nanolm.training.destination import choose_directory
    from nanolm.training.distributed.ranks import process_group

    with process_group(command.config.trainer) as ranks:
        try:
            return _train(command, ranks, ranks.run_on_main(lambda: choose_directory(command)))
        except OSError as error:
            # The process group is destroyed in order only after errors of nanolm.
            raise explain_os_error(error) from error


def _resumed_config(overrides: list[str]) -> Path | None:
    """Return the config.yaml of the run that a command line resumes or forks, if it names one.

    Raises:
        RunError: the run does not exist.
    """
    from nanolm.compose import parse
    from nanolm.compose.launch import read_launch

    # Mistakes in launch options are reported together with all others, when the command line is composed.
    launch, _ = read_launch(parse(overrides))
    if launch.resumed_path is None:
        return None
    from nanolm.runs.directory import RunDirectory
    from nanolm.training.destination import require_run, run_of

    require_run(launch.resumed_path, launch.fork)
    return RunDirectory(run_of(launch.resumed_path)).config


def _train(command: ComposedCommand, ranks: Ranks, directory: Path) -> int:
    """Train in a directory, or make a dry run; return the exit status."""
    from nanolm.data.download import only_if_asked
    from nanolm.runs.directory import RunDirectory, display_path
    from nanolm.training.starting_point import starting_point

    run = RunDirectory(display_path(directory))
    with contextlib.ExitStack() as stack:
        ranks.run_on_main(lambda: stack.enter_context(run.claim()))
        start = ranks.run_on_main(lambda: starting_point(run, command))
        if start.completed_step is not None:
            if ranks.is_main:
                terminal.say(f"nothing to do: {run.path} is completed at step {start.completed_step}")
            return 0
        if start.is_from_run:
            stack.enter_context(only_if_asked(command.given))
        if command.launch.dry_run:
            from nanolm.training.dry_run import dry_run, print_estimate

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
        )
        if ranks.is_main:
            print_result_table(outcome.summary, run, outcome.sample, outcome.prompt, start.config.plugins)
        return outcome.exit_status
