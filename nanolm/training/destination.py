"""Choose the directory of a run: of the run that is resumed, the one that the user names, or a new one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from nanolm import shell
from nanolm.analysis.collection import plain_settings
from nanolm.compose import ComposedCommand, parse
from nanolm.compose.launch import read_launch
from nanolm.config.budget import budget_of
from nanolm.config.checks import check
from nanolm.config.checks.lora import check_start
from nanolm.config.identity import identity
from nanolm.config.launch import AUTO
from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.run_layout import checkpoint_step, checkpoints_by_step
from nanolm.runs.directory import RunDirectory, create_unique_folder, display_path, enclosing_run
from nanolm.runs.occupancy import require_startable
from nanolm.runs.summary import STOPPED_EARLY


def choose_directory(command: ComposedCommand) -> Path:
    """Choose the directory of the run that a command line starts or resumes. A new one is created.

    A path to resume has passed `require_run`.

    Raises:
        SettingsError: the settings of a new run are inconsistent, or a resumed run is given another directory.
        RunError: the given directory cannot be used.
    """
    resumed = command.launch.resumed_path
    if resumed is not None and not command.launch.fork:
        if command.run_directory_is_given and command.run_directory.resolve() != resumed.resolve():
            raise SettingsError(
                f"resume={resumed} continues in its own directory, but hydra.run.dir is {command.run_directory}",
                where="hydra.run.dir",
                hint="leave out hydra.run.dir, or add fork=true to start a new run there",
            )
        return resumed
    # Before a directory is created.
    raise_all([*check(command.config), *([] if command.launch.fork else check_start(command.config))])
    if command.run_directory_is_given:
        require_startable(RunDirectory(command.run_directory))
    if command.run_directory_is_given or command.launch.dry_run:
        return command.run_directory
    unfinished = _unfinished_run(command) if command.launch.resume == AUTO else None
    return unfinished or create_unique_folder(
        command.run_directory if resumed is None else _name_of_fork(command, resumed)
    )


def resumed_config(overrides: Sequence[str]) -> Path | None:
    """Return the config.yaml of the run that a command line resumes or forks, if it names one.

    Args:
        overrides: in Hydra's syntax.

    Raises:
        RunError: the run does not exist.
    """
    # Mistakes in launch options are reported together with all others, when the command line is composed.
    launch, _ = read_launch(parse(overrides))
    if launch.resumed_path is None:
        return None
    require_run(launch.resumed_path, launch.fork)
    return RunDirectory(run_of(launch.resumed_path)).config


def require_run(path: Path, is_fork: bool) -> None:
    """Refuse a path to resume that is not a run; a fork may also start from a checkpoint.

    Raises:
        RunError: with the command to use instead, where the path is a part of a run.
    """
    run, is_checkpoint = enclosing_run(path), is_checkpoint_path(path)
    if RunDirectory(path).exists() or (is_fork and is_checkpoint):
        return
    if run is None:
        RunDirectory(path).require()
    hint = f"{shell.resume_command(run or path)} resumes from the latest checkpoint"
    what = f"{path} is {'one checkpoint' if is_checkpoint else 'a part'} of the run {run}"
    if is_checkpoint and not _is_saved(path):
        what = f"the run {run} has no checkpoint {path.name}"
    elif is_checkpoint:
        hint += f"; {_fork_command(path)} starts a new run from this one"
    raise RunError(what, where=f"{'fork' if is_fork else 'resume'}={path}", hint=hint)


def is_checkpoint_path(path: Path) -> bool:
    """Whether a path has the name of a checkpoint in a run. It need not exist."""
    return path.absolute().parent.name == "checkpoints" and path.absolute().name.startswith("step-")


def run_of(path: Path) -> Path:
    """Return the directory of the run that a path or a checkpoint's path belongs to."""
    return display_path(path.absolute().parent.parent) if is_checkpoint_path(path) else path


def _is_saved(path: Path) -> bool:
    """Whether a checkpoint of this name exists, with or without leading zeros in its step."""
    return path.exists() or checkpoint_step(path.absolute().name) in checkpoints_by_step(path.absolute().parent)


def _fork_command(path: Path) -> str:
    """Return the command that forks a run at a checkpoint, with more steps where none would be left to train."""
    more = []
    step = checkpoint_step(path.absolute().name)
    with contextlib.suppress(RunError, KeyError, TypeError):
        if step is not None and step >= plain_settings(RunDirectory(run_of(path)).config)["trainer.max_steps"]:
            more = [f"trainer.max_steps={step * 2}"]
    return shell.resume_command(path, "fork=true", *more)


def _name_of_fork(command: ComposedCommand, parent: Path) -> Path:
    """Return a fork's new directory, named after the parent's model and dataset unless the command chooses them."""
    folder = command.run_directory
    inherited = RunDirectory(run_of(parent)).read_summary().choices
    chosen = command.choices | {
        name: option for name, option in inherited.items() if f"{name}.name" not in command.given
    }
    endings = [f"_{choices['model']}_{choices['dataset']}" for choices in (command.choices, chosen)]
    return folder.with_name(folder.name.removesuffix(endings[0]) + endings[1])


def _unfinished_run(command: ComposedCommand) -> Path | None:
    """Return the latest unfinished run with the same settings, among the siblings of the new directory."""
    wanted, budget = identity(command.config), budget_of(command.config.trainer)
    for path in sorted(command.run_directory.parent.glob("*/summary.json"), reverse=True):
        with contextlib.suppress(NanolmError):
            summary = RunDirectory(path.parent).read_summary()
            # A fork has its settings in common with other runs, but not its first weights.
            if (
                summary.identity == wanted
                and summary.parent is None
                and not (summary.is_complete(budget) or summary.status == STOPPED_EARLY)
            ):
                return path.parent
    return None
