"""Decide how the run in a directory starts: from scratch, from its latest checkpoint, or as a fork of another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nanolm import shell
from nanolm.checksummed import is_sha256, is_size
from nanolm.compose import ComposedCommand, continue_run
from nanolm.config.budget import budget_of
from nanolm.config.checks import check
from nanolm.config.fields import flat
from nanolm.config.launch import NEVER
from nanolm.config.run import Config
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import RunError, SettingsError, raise_all
from nanolm.run_layout import checkpoint_step, checkpoints_by_step
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import is_without_config
from nanolm.runs.summary import Summary
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.checkpoints.resume_checks import require_same_settings, require_unedited
from nanolm.training.destination import is_checkpoint_path, run_of


@dataclasses.dataclass(frozen=True)
class StartingPoint:
    """How a run starts.

    Attributes:
        config: checked settings; of a resumed run or a fork, those of the run or the parent with the given changes.
        choices: the option chosen in each group.
        changes: settings that differ from those of the run or the parent, as 'key: old -> new'.
        parent: the checkpoint that a fork starts from.
        completed_step: the last step if the run is complete, so that nothing is left to train; else None.
        is_from_run: whether the settings are those of a run, with changes.
    """

    config: Config
    choices: dict[str, str]
    changes: list[str] = dataclasses.field(default_factory=list)
    parent: Parent | None = None
    completed_step: int | None = None
    is_from_run: bool = False


def starting_point(run: RunDirectory, command: ComposedCommand) -> StartingPoint:
    """Decide how a run starts. This process must hold the lock of the directory.

    Args:
        run: a new directory, or the run to resume.

    Raises:
        NanolmError: the directory contains a run that is not to be resumed, or the settings are inconsistent.
    """
    launch = command.launch
    if (launch.resume == NEVER or launch.fork) and (run.exists() or is_without_config(run)):
        raise RunError(
            "the directory already contains a run" + ("" if run.exists() else ", whose config.yaml is missing"),
            where=str(run.path),
            hint=f"{shell.resume_command(run.path) if launch.fork else 'resume=auto'} resumes it; "
            "another hydra.run.dir= starts a new run",
        )
    if run.exists():
        start = _resumed(run, command)
    elif launch.fork:
        assert launch.resumed_path is not None
        start = forked(launch.resumed_path, command)
    else:
        start = StartingPoint(command.config, command.choices)
    if start.completed_step is None:
        raise_all(check(start.config))
    return start


def forked(path: Path, command: ComposedCommand) -> StartingPoint:
    """Start from the latest checkpoint of a run, or from one checkpoint.

    Args:
        path: of the run or the checkpoint.

    Raises:
        NanolmError: the run or the checkpoint does not exist, or no step would be left to train.
    """
    run = RunDirectory(run_of(path)).require()
    step = checkpoint_step(path.absolute().name) if is_checkpoint_path(path) else None
    if step is not None:
        found: checkpoint.Checkpoint | None = checkpoint.at_step(run.checkpoints, step)
    else:
        found = checkpoint.verify(path) if is_checkpoint_path(path) else checkpoint.newest(run.checkpoints)[0]
    if found is None:
        summary = run.read_summary()
        was_saved = summary.has_checkpoint or summary.step
        raise RunError(
            "the run has no checkpoint to start from",
            where=str(run.checkpoints),
            hint="take the checkpoints directory from a copy of the run" if was_saved else "wait for its first save",
        )
    saved = load_yaml(run.config)
    require_same_settings(saved, run, found.manifest, found.path)
    if run.read_summary().is_imported and not any(key.startswith("dataset.") for key in command.given):
        raise SettingsError(
            "the model was imported, and has no text to train on",
            where=f"resume={path}",
            hint="choose one, as in dataset=tiny_shakespeare, or dataset=text dataset.path=FILE",
        )
    config, changes = continue_run(saved, command, is_fork=True)
    parent = Parent(run, saved, found)
    parent.require_steps_left(config)
    chosen = {
        group: option
        for group, option in command.choices.items()
        if (keys := {key for key in flat(command.config) if key.startswith(f"{group}.")}) and keys <= command.given
    }
    choices = _recorded_choices(run, config) | chosen
    return StartingPoint(config, choices, changes, parent, is_from_run=True)


def _resumed(run: RunDirectory, command: ComposedCommand) -> StartingPoint:
    saved, summary = load_yaml(run.config), run.read_summary()
    if summary.is_imported:
        raise RunError(
            "the model was imported: there is no training to resume",
            where=str(run.path),
            hint="start a new run from its weights: "
            + shell.resume_command(run.path, "fork=true", "dataset=tiny_shakespeare"),
        )
    config, changes = continue_run(saved, command)
    choices = _recorded_choices(run, config)
    if summary.is_complete(budget_of(config.trainer)):
        require_unedited(saved, run)
        return StartingPoint(config, choices, changes, completed_step=summary.step or 0)
    parent = None if checkpoints_by_step(run.checkpoints) else _recorded_parent(run, summary)
    return StartingPoint(config, choices, changes, parent, is_from_run=True)


def _recorded_choices(run: RunDirectory, config: Config) -> dict[str, str]:
    """Return the options of a run, or their names in the settings if its summary does not have them."""
    groups = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return run.read_summary().choices or {name: group.name for name, group in groups.items() if hasattr(group, "name")}


def _recorded_parent(run: RunDirectory, summary: Summary) -> Parent | None:
    """Return where a run without checkpoints starts again: a fork from its parent, any other run from scratch.

    Raises:
        NanolmError: the parent or its checkpoint no longer exists, or it is unknown whether the run is a fork.
    """
    if run.summary.exists() and summary.parent is None:
        return None
    pointer = summary.parent or {}
    if not (isinstance(pointer.get("run"), str) and is_size(pointer.get("step")) and is_sha256(pointer.get("weights"))):
        raise RunError(
            "the run has no checkpoint, and its summary does not say whether it is a fork",
            where=str(run.summary),
            hint="take summary.json from a copy of the run, or start the run again in another directory",
        )
    parent = RunDirectory(pointer["run"]).require()
    found = checkpoint.at_step(parent.checkpoints, pointer["step"])
    if found.manifest["files"][checkpoint.WEIGHTS]["sha256"] != pointer["weights"]:
        raise RunError(
            "the checkpoint that the fork started from has changed",
            where=str(found.path),
            hint="start the fork again in another directory",
        )
    return Parent(parent, load_yaml(parent.config), found)
