"""`nanolm train`: from a line to its run, or with -m to its runs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nanolm import shell, terminal
from nanolm.config.interpolation import escape
from nanolm.config.launch import AUTO, NEVER
from nanolm.errors import NanolmError, RunError, SettingsError, explain_os_error, nearest, raise_all
from nanolm.files import user_path
from nanolm.torchrun import rank, world_size

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.compose import Line
    from nanolm.config.run import Config
    from nanolm.runs.directory import RunDirectory
    from nanolm.runs.summary import Summary
    from nanolm.training.checkpoints.fork import Parent
    from nanolm.training.distributed.ranks import Ranks


def run(arguments: list[str]) -> int:
    """`nanolm train`: composes the line and runs it or, with -m, has Hydra launch a job for every combination."""
    from nanolm.compose import compose_line, hidden_options
    from nanolm.training.distributed.ranks import process_group

    flags = _train_flags(arguments)
    if flags.help:
        from nanolm.cli.train_help import train_help

        print(train_help(flags.overrides, flags.config_dir), end="")
        return 0
    _check_flags(flags)
    if flags.multirun and flags.cfg:
        raise SettingsError(
            "--cfg prints the settings of one run, and -m makes many", where="the command line", hint="leave out -m"
        )
    if flags.hydra_help or flags.cfg or flags.info is not None or flags.shell_completion:
        return _ask_hydra(flags, arguments)
    run = None if flags.multirun else _resumed(flags.overrides)
    line = compose_line(flags.overrides, flags.config_dir, flags.multirun, saved=run.config if run else None)
    if flags.multirun or not line.launch.dry_run:
        terminal.ignore_write_errors()
    for name in hidden_options(flags.config_dir) if flags.config_dir and rank() == 0 else []:
        terminal.say(f"nanolm: {flags.config_dir}/{name} is not read: nanolm has its own {name}")
    if flags.multirun and world_size() > 1:
        raise SettingsError(
            f"-m makes many runs, and torchrun started {world_size()} processes for one",
            where="the command line",
            hint="torchrun for each run by itself, or -m without torchrun",
        )
    if flags.multirun:
        return _sweep(flags, line)
    with process_group(line.config.trainer) as ranks:
        directory = ranks.run_on_main(lambda: _run_directory(line))
        return _run(line, ranks, directory)


def _ask_hydra(flags: argparse.Namespace, arguments: list[str]) -> int:
    """Hydra's own answers (--cfg, --info, ...) about a line that composes; returns the exit status.

    Raises:
        SettingsError: with every mistake in the line.
    """
    from nanolm.compose import import_plugins, register_schemas
    from nanolm.compose.line import check_line
    from nanolm.config.composed import summarize_error

    import_plugins([])
    register_schemas()
    if flags.cfg or flags.info is not None:
        run = _resumed(flags.overrides) if flags.cfg else None
        composed = check_line(
            flags.overrides, flags.config_dir, is_resolved=flags.resolve, saved=run.config if run else None
        )
        if flags.package and flags.cfg == "job" and flags.package.split(".")[0] == "hydra":
            raise SettingsError("--cfg job leaves out hydra", where="--package", hint="--cfg hydra, or --cfg all")
        if flags.package and not _has_package(composed, flags.package):
            groups = [name for name in map(str, composed) if name != "hydra"]
            raise SettingsError(
                f"there is no package {flags.package!r}", where="--package", hint=nearest(flags.package, groups)
            )
        if flags.cfg:
            _print_settings(composed, flags)
            return 0
    try:
        _call_hydra(flags, lambda composed: None)
    except NanolmError:
        raise
    except Exception as error:
        if flags.shell_completion:
            hint = 'eval "$(nanolm train --shell-completion install=bash)"'
            raise SettingsError(str(error), where="--shell-completion", hint=hint) from error
        asked = " ".join(word for word in arguments if word.startswith("-"))
        raise SettingsError(
            summarize_error(error), where=asked, hint="`nanolm train --hydra-help` lists the flags"
        ) from error
    return 0


def _print_settings(composed: DictConfig, flags: argparse.Namespace) -> None:
    """Print what a line composes to as YAML: of a line that goes on with a run, over the run's own settings."""
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from nanolm.compose.hydra_api import hydra_context

    with hydra_context():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        OmegaConf.set_readonly(composed.hydra, None)
        shown = hydra.get_sanitized_cfg(composed, flags.cfg)
        package = None if flags.package == "_global_" else flags.package
        part = shown if package is None else OmegaConf.select(shown, package)
        if not OmegaConf.is_config(part):
            terminal.write(str(part))
            return
        if flags.resolve:
            OmegaConf.resolve(part)
        terminal.write((f"# @package {package}\n" if package else "") + OmegaConf.to_yaml(part).rstrip("\n"))


def _has_package(composed: DictConfig, package: str) -> bool:
    from omegaconf import OmegaConf

    return package == "_global_" or OmegaConf.select(composed, package, throw_on_missing=False) is not None


def _resumed(overrides: list[str]) -> RunDirectory | None:
    """The run that a line goes on with or begins from, if it names one.

    Raises:
        RunError: there is no such run.
    """
    from nanolm.compose import parse
    from nanolm.compose.launch import is_launch_option, read_launch
    from nanolm.runs.directory import RunDirectory

    launch, _ = read_launch([override for override in parse(overrides) if is_launch_option(override)])
    if launch.resumed_path is None:
        return None
    _require_run(launch.resumed_path, launch.fork)
    return RunDirectory(_run_of(launch.resumed_path))


def _train_flags(arguments: list[str]) -> argparse.Namespace:
    """Parse the flags of Hydra, wherever they are on the command line, and the overrides.

    Raises:
        SettingsError: a flag that does not exist.
    """
    from hydra._internal.utils import get_args_parser

    from nanolm.compose import as_hydra_reads

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise SettingsError(
            message, where="the command line", hint="settings are key=value, for example optimizer.lr=1e-3"
        )

    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    flags.overrides = as_hydra_reads(flags.overrides, bool(flags.multirun))
    return flags


# Flags of Hydra that nanolm does not support, and what to do instead.
UNSUPPORTED_FLAGS = {
    "config_path": "--config-dir FOLDER adds your own options to nanolm's",
    "config_name": "write an experiment file, and choose it with --config-dir FOLDER experiment=NAME",
    "experimental_rerun": "it would execute what is in a pickle; nanolm train resume=RUN goes on with a run",
}


def _check_flags(flags: argparse.Namespace) -> None:
    """Check the flags of Hydra.

    Raises:
        SettingsError: with every flag that is not supported.
    """
    problems = [
        SettingsError(f"--{name.replace('_', '-')} is not supported", where="the command line", hint=hint)
        for name, hint in UNSUPPORTED_FLAGS.items()
        if getattr(flags, name) is not None
    ]
    if flags.run and flags.multirun:
        problems.append(SettingsError("--run and -m exclude each other", where="the command line", hint="drop one"))
    problems += [
        SettingsError(f"--{name} is about what --cfg prints", where="the command line", hint="add --cfg job")
        for name in ("resolve", "package")
        if getattr(flags, name) and not flags.cfg
    ]
    raise_all(problems)


def _run_directory(line: Line) -> Path:
    """Where the run of this line goes: the run that it resumes, the folder that it names, or a fresh one."""
    from nanolm.config.checks import check
    from nanolm.runs.directory import RunDirectory, fresh
    from nanolm.runs.occupancy import require_startable

    resumed = line.launch.resumed_path
    if resumed is not None:
        _require_run(resumed, line.launch.fork)
        if not line.launch.fork:
            _require_same_directory(line, resumed)
            return resumed
    raise_all(check(line.config))
    if line.run_directory_is_given:
        require_startable(RunDirectory(line.run_directory))
    if line.run_directory_is_given or line.launch.dry_run:
        return line.run_directory
    cut_off = _cut_off_run(line) if line.launch.resume == AUTO else None
    return cut_off or fresh(_named_like_its_parent(line, resumed) if resumed is not None else line.run_directory)


def _require_same_directory(line: Line, run: Path) -> None:
    """Refuse a run directory beside the run that a line goes on with.

    Raises:
        SettingsError: hydra.run.dir= names another folder.
    """
    if line.run_directory_is_given and line.run_directory.resolve() != run.resolve():
        raise SettingsError(
            f"resume={run} goes on in its own folder, and hydra.run.dir is {line.run_directory}",
            where="hydra.run.dir",
            hint="leave hydra.run.dir= out, or add fork=true to begin a new run there",
        )


def _require_run(path: Path, is_fork: bool) -> None:
    """Refuse a path to resume that is no run; a fork may also begin at a checkpoint.

    Raises:
        RunError: with what can be typed instead, where the path is a part of a run.
    """
    from nanolm.runs.directory import RunDirectory, enclosing_run

    run, is_checkpoint = enclosing_run(path), _is_checkpoint(path)
    if RunDirectory(path).exists() or (is_fork and is_checkpoint):
        return
    if run is None:
        RunDirectory(path).require()
    hint = f"{shell.resume_command(run or path)} goes on from the newest checkpoint"
    what = f"{path} is {'one checkpoint' if is_checkpoint else 'a part'} of the run {run}"
    if is_checkpoint and not _is_saved(path):
        what = f"the run {run} has no checkpoint {path.name}"
    elif is_checkpoint:
        hint += f"; {_fork_command(path)} begins a new run from this one"
    raise RunError(
        what,
        where=f"resume={path}",
        hint=hint,
    )


def _is_saved(path: Path) -> bool:
    """Whether there is a checkpoint of this name, with or without the zeros before its step."""
    names = [folder.name.removeprefix("step-") for folder in path.absolute().parent.glob("step-*")]
    steps = {int(name) for name in names if name.isdecimal()}
    number = path.absolute().name.removeprefix("step-")
    return path.exists() or (number.isdecimal() and int(number) in steps)


def _fork_command(path: Path) -> str:
    """The command that forks a run at a checkpoint, with more steps where the run would have none left."""
    from nanolm.analysis.collection import plain_settings
    from nanolm.runs.directory import RunDirectory

    more = []
    with contextlib.suppress(RunError, ValueError, TypeError):
        step = int(path.absolute().name.removeprefix("step-"))
        if step >= plain_settings(RunDirectory(_run_of(path)).config)["trainer.max_steps"]:
            more = [f"trainer.max_steps={step * 2}"]
    return shell.resume_command(path, "fork=true", *more)


def _is_checkpoint(path: Path) -> bool:
    """Whether a path is named like a checkpoint in its run."""
    return path.absolute().parent.name == "checkpoints" and path.absolute().name.startswith("step-")


def _named_like_its_parent(line: Line, parent: Path) -> Path:
    """The new place of a fork: what the line does not choose is as its parent has it."""
    from nanolm.runs.directory import RunDirectory

    folder = line.run_directory
    had = RunDirectory(_run_of(parent)).read_summary().choices
    chosen = line.choices | {group: option for group, option in had.items() if f"{group}.name" not in line.given}
    endings = [f"_{choices['model']}_{choices['dataset']}" for choices in (line.choices, chosen)]
    return folder.with_name(folder.name.removesuffix(endings[0]) + endings[1])


def _run_of(path: Path) -> Path:
    """The directory of the run that a path is, or a checkpoint of."""
    from nanolm.runs.directory import shown

    return shown(path.absolute().parent.parent) if _is_checkpoint(path) else path


def _cut_off_run(line: Line) -> Path | None:
    """The newest run beside the new one's place that has these very settings and did not come to its end."""
    from nanolm.config.identity import identity
    from nanolm.runs.directory import RunDirectory

    wanted, steps = identity(line.config), line.config.trainer.max_steps
    for path in sorted(line.run_directory.parent.glob("*/summary.json"), reverse=True):
        with contextlib.suppress(NanolmError):
            summary = RunDirectory(path.parent).read_summary()
            if summary.identity == wanted and summary.parent is None and not summary.is_complete(steps):
                return path.parent
    return None


def _sweep(flags: argparse.Namespace, line: Line) -> int:
    """Have Hydra run a sweep; return the exit status.

    Raises:
        NanolmError: what is wrong with the line.
    """
    from nanolm.sweeps.job import SweepJob

    flags.overrides.append(f"hydra.sweep.dir={_quoted(line.sweep_directory)}")
    _call_hydra(flags, SweepJob(config_dir=flags.config_dir, profile=line.launch.profile))
    return 0


def _run(line: Line, ranks: Ranks, directory: Path) -> int:
    """Runs the line as Hydra runs a job; returns the exit status.

    Raises:
        NanolmError: what is wrong with the run.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.utils import run_job
    from hydra.types import HydraContext
    from omegaconf import open_dict, read_write

    from nanolm.compose.hydra_api import hydra_context
    from nanolm.runs.directory import RunDirectory

    failed: list[NanolmError] = []

    def job(composed: DictConfig) -> float | None:
        # Kept from Hydra, which has words of its own for a job that fails.
        try:
            return _job(line, ranks)
        except NanolmError as error:
            failed.append(error)
            return None
        except OSError as error:
            failed.append(explain_os_error(error))
            return None

    # Before Hydra writes there; the claim on the folder looks again.
    RunDirectory(directory).make()
    with read_write(line.composed.hydra), open_dict(line.composed.hydra):
        line.composed.hydra.run.dir = escape(str(directory.absolute()))
    with hydra_context():
        # No callbacks and no logging of Hydra's: both would be made from what is composed.
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
        result = run_job(job, line.composed, "hydra.run.dir", None, context, configure_logging=False)
    _ = result.return_value  # raises what the job did
    if failed:
        raise failed[0]
    return 0


def _call_hydra(flags: argparse.Namespace, job: Callable[[DictConfig], Any]) -> None:
    """Have Hydra do what a command line asks for: sweep, or print something about it.

    Args:
        flags: of Hydra, with the overrides.
        job: called with the composed configuration of a run.

    Raises:
        NanolmError: a setting is not supported.
    """
    from hydra._internal.utils import get_args_parser
    from hydra.core.global_hydra import GlobalHydra

    from nanolm.compose import CONFIG_NAME, config_folder
    from nanolm.compose.hydra_app import create_hydra
    from nanolm.compose.launch import without_launch_options

    # Hydra's own help is of no configuration in particular.
    folder = str(user_path(flags.config_dir)) if flags.config_dir and not flags.hydra_help else None
    hydra = create_hydra(config_folder(), folder)
    GlobalHydra.instance().initialize(hydra)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if flags.hydra_help:
            flags.overrides = []
            hydra.hydra_help(None, args_parser=get_args_parser(), args=flags)
        elif flags.shell_completion:
            hydra.shell_completion(CONFIG_NAME, flags.overrides)
        elif flags.info is not None:
            hydra.show_info(flags.info, CONFIG_NAME, without_launch_options(flags.overrides))
        else:
            hydra.multirun(CONFIG_NAME, job, without_launch_options(flags.overrides))
    finally:
        GlobalHydra.instance().clear()


def _job(line: Line, ranks: Ranks) -> float | None:
    """The run, in the folder that Hydra made for it; returns its best validation loss."""
    from hydra.core.hydra_config import HydraConfig

    from nanolm.runs.directory import RunDirectory, shown

    run = RunDirectory(shown(HydraConfig.get().runtime.output_dir))
    with contextlib.ExitStack() as stack:
        ranks.run_on_main(lambda: stack.enter_context(run.claim()))
        task = ranks.run_on_main(lambda: _task(run, line))
        if task is None:
            return run.read_summary().best_val_loss
        if line.launch.dry_run:
            from nanolm.training.dry_run import dry_run, print_estimate

            estimate = dry_run(task.config, run, ranks=ranks, parent=task.parent)
            if ranks.is_main:
                print_estimate(estimate)
            return None
        from nanolm.runs.result_table import print_result_table
        from nanolm.training.trainer import train as train_model

        choices = _choices(task, run, line)
        outcome = train_model(
            task.config,
            run,
            choices=choices,
            changes=task.changes,
            ranks=ranks,
            parent=task.parent,
            profile=line.launch.profile,
        )
        if ranks.is_main:
            print_result_table(outcome.summary, run, outcome.sample, outcome.prompt, task.config.plugins)
        if outcome.exit_status:
            sys.exit(outcome.exit_status)
        return outcome.summary.best_val_loss


@dataclasses.dataclass(frozen=True)
class Task:
    """What there is to do in a run directory.

    Attributes:
        config: the settings, those of the run that it goes on with or begins from.
        changes: what is not as that run had it, as 'key: old -> new'.
        parent: where a fork begins.
        choices: the option chosen in each group that a fork does not have from its parent.
    """

    config: Config
    changes: list[str]
    parent: Parent | None = None
    choices: dict[str, str] = dataclasses.field(default_factory=dict)


def _choices(task: Task, run: RunDirectory, line: Line) -> dict[str, str]:
    """The option of each group, for the summary: as the run that goes on or is forked has it, where it does."""
    origin = run if task.parent is None else task.parent.run
    recorded = origin.read_summary().choices
    if not recorded and origin.exists():
        groups = {field.name: getattr(task.config, field.name) for field in dataclasses.fields(task.config)}
        recorded = {name: group.name for name, group in groups.items() if hasattr(group, "name")}
    return {**(recorded or line.choices), **task.choices}


def _task(run: RunDirectory, line: Line) -> Task | None:
    """What a job has to do in its folder; None where all is done.

    Raises:
        NanolmError: the folder holds a run that is not to go on, or the settings cannot be right.
    """
    from nanolm.compose import continue_run
    from nanolm.config.checks import check
    from nanolm.config.yaml_io import load_yaml
    from nanolm.runs.occupancy import is_without_config
    from nanolm.training.checkpoints import files as checkpoint
    from nanolm.training.checkpoints.resume_checks import require_unedited

    task, launch = Task(line.config, []), line.launch
    if (launch.resume == NEVER or launch.fork) and (run.exists() or is_without_config(run)):
        hint = f"{shell.resume_command(run.path)} goes on with it" if launch.fork else "resume=auto goes on with it"
        raise RunError(
            "this folder holds a run already" + ("" if run.exists() else ", whose config.yaml is missing"),
            where=str(run.path),
            hint=f"{hint}; another hydra.run.dir= starts anew",
        )
    if run.exists():
        saved = load_yaml(run.config)
        task = Task(*continue_run(saved, line))
        summary = run.read_summary()
        if summary.is_complete(task.config.trainer.max_steps):
            require_unedited(saved, run)
            terminal.say(f"nothing to do: {run.path} is completed at step {summary.step}")
            return None
        if not checkpoint.folders(run.checkpoints):
            task = dataclasses.replace(task, parent=_recorded_parent(run, summary))
    elif launch.fork:
        assert launch.resumed_path is not None
        task = _fork(launch.resumed_path, line)
    raise_all(check(task.config))
    return task


def _recorded_parent(run: RunDirectory, summary: Summary) -> Parent | None:
    """Return where a run without checkpoints starts again: a fork at its parent, any other run at step 0.

    Raises:
        NanolmError: the parent or its checkpoint does not exist any more, or whether the run is a fork is unknown.
    """
    from nanolm.config.yaml_io import load_yaml
    from nanolm.runs.directory import RunDirectory
    from nanolm.training.checkpoints import files as checkpoint
    from nanolm.training.checkpoints.fork import Parent

    if run.summary.exists() and summary.parent is None:
        return None
    pointer = summary.parent or {}
    if not {"run", "step", "weights"} <= set(pointer):
        raise RunError(
            "the run has no checkpoint, and its summary does not say whether it is a fork",
            where=str(run.summary),
            hint="take summary.json from a copy of the run, or start the run again in another folder",
        )
    parent = RunDirectory(pointer["run"]).require()
    found = checkpoint.at_step(parent.checkpoints, pointer["step"])
    if found.manifest["files"][checkpoint.WEIGHTS]["sha256"] != pointer["weights"]:
        raise RunError(
            "the checkpoint that the fork began from has other weights now",
            where=str(found.path),
            hint="begin the fork again in another folder",
        )
    return Parent(parent, load_yaml(parent.config), found)


def _fork(path: Path, line: Line) -> Task:
    """A task that begins at the newest checkpoint of a run, or at one checkpoint.

    Args:
        path: of the run or the checkpoint.
        line: the command line, with the settings that differ.

    Raises:
        NanolmError: there is no such run or checkpoint, or it has no step to go on with.
    """
    from nanolm.compose import continue_run
    from nanolm.config.fields import flat
    from nanolm.config.yaml_io import load_yaml
    from nanolm.runs.directory import RunDirectory
    from nanolm.training.checkpoints import files as checkpoint
    from nanolm.training.checkpoints.fork import Parent
    from nanolm.training.checkpoints.resume_checks import require_same_settings

    run = RunDirectory(_run_of(path)).require()
    if _is_checkpoint(path) and path.absolute().name.removeprefix("step-").isdigit():
        found: checkpoint.Checkpoint | None = checkpoint.at_step(run.checkpoints, checkpoint.step_of(path.absolute()))
    else:
        found = checkpoint.verify(path) if _is_checkpoint(path) else checkpoint.newest(run.checkpoints)[0]
    if found is None:
        summary = run.read_summary()
        was_saved = summary.has_checkpoint or summary.step
        raise RunError(
            "the run has no checkpoint to begin from",
            where=str(run.checkpoints),
            hint="take the folder checkpoints from a copy of the run" if was_saved else "wait for its first save",
        )
    saved = load_yaml(run.config)
    require_same_settings(saved, run, found.manifest, found.path)
    forked, changes = continue_run(saved, line, is_fork=True)
    if found.step >= forked.trainer.max_steps:
        checkpoints = shell.join("nanolm", "checkpoints", shell.path_argument(run.path))
        raise SettingsError(
            f"the fork would begin at step {found.step}, and trainer.max_steps is {forked.trainer.max_steps}",
            where="trainer.max_steps",
            hint=f"trainer.max_steps={found.step * 2}, or an earlier one of `{checkpoints}`",
        )
    chosen = {
        group: option
        for group, option in line.choices.items()
        if (keys := {key for key in flat(line.config) if key.startswith(f"{group}.")}) and keys <= line.given
    }
    return Task(forked, changes, Parent(run, saved, found), chosen)


def _quoted(path: Path) -> str:
    from nanolm.compose import quoted

    return quoted(str(path.absolute()))
