"""`nanolm train`: from a line to its run, or with -m to its runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nanolm.errors import NanolmError, RunError, SettingsError
from nanolm.launch import n_ranks, own_rank

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from nanolm.compose import Line
    from nanolm.config import Config
    from nanolm.runs.directory import RunDirectory
    from nanolm.training.ranks import Ranks

HELP = """\
nanolm train: train a model, or go on with a run.

  nanolm train dataset=tiny_shakespeare tokenizer=char model=gpt size=tiny mask=causal trainer.max_steps=2000
  nanolm train dataset=text dataset.path=my_book.txt          anyone's text: a file, a folder or a glob
  nanolm train -m model=bigram,gpt2,gpt optimizer.lr=1e-3,3e-3      every combination, one after another
  nanolm train resume=outputs/RUN trainer.max_steps=4000      go on with a run
  nanolm train ... resume=auto                                go on if these settings were cut off, else start
  torchrun --nproc-per-node=4 -m nanolm train ...             the same batches, shared by four processes

What can be chosen, as group=option:

{groups}

The defaults. Each can be set as key=value, for example optimizer.lr=1e-3:

{defaults}
  --config-dir FOLDER   your own options beside these     --cfg job   print a line's settings without running it
  hydra.run.dir=FOLDER  where the run goes                --hydra-help   the rest of Hydra's flags
"""


def train(arguments: list[str]) -> int:
    """`nanolm train`: Hydra composes the line, and launches one job or, with -m, one for every combination."""
    from nanolm.compose import compose_line, hidden_options, import_plugins, quoted, register_schemas
    from nanolm.training.ranks import started

    flags, arguments = _train_flags(arguments)
    if flags.help:
        print(_train_help(flags.config_dir), end="")
        return 0
    asks_only = flags.hydra_help or flags.cfg or flags.info is not None or flags.shell_completion
    if asks_only:
        import_plugins([])
        register_schemas()
        return _hydra(arguments)
    line = compose_line(flags.overrides, flags.config_dir, flags.multirun)
    for name in hidden_options(flags.config_dir) if flags.config_dir and own_rank() == 0 else []:
        print(f"nanolm: {flags.config_dir}/{name} is not read: nanolm has its own {name}", file=sys.stderr)
    if flags.multirun and n_ranks() > 1:
        raise SettingsError(
            f"-m makes many runs, and torchrun started {n_ranks()} processes for one",
            where="the command line",
            mend="torchrun for each run by itself, or -m without torchrun",
        )
    if flags.multirun:
        return _hydra(arguments)
    with started(line.config.trainer) as ranks:
        directory = ranks.from_main(lambda: _run_directory(line))
        return _hydra([*arguments, f"hydra.run.dir={quoted(str(directory))}"], line, ranks)


def _train_flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags, wherever they stand in the line, and the line with its flags first, as Hydra wants it.

    Raises:
        SettingsError: a flag that does not exist.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise SettingsError(
            message, where="the command line", mend="settings are key=value, for example optimizer.lr=1e-3"
        )

    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    words = list(arguments)
    for override in flags.overrides:
        words.remove(override)
    return flags, [*words, *flags.overrides]


def _train_help(config_dir: str | None) -> str:
    """The options in every group, those of the user's folder included, and all settings with their defaults."""
    import textwrap

    from nanolm.compose import compose_line, config_folder
    from nanolm.config_file import save_yaml

    folders = [config_folder(), *([Path(config_dir)] if config_dir else [])]
    options: dict[str, set[str]] = {}
    for path in (path.relative_to(folder) for folder in folders for path in folder.glob("*/**/*.yaml")):
        options.setdefault(path.parts[0], set()).add(Path(*path.parts[1:]).with_suffix("").as_posix())
    groups = "\n".join(
        textwrap.fill(", ".join(sorted(names)), 100, initial_indent=f"  {group + ':':<12}", subsequent_indent=" " * 14)
        for group, names in sorted(options.items())
    )
    defaults = textwrap.indent(save_yaml(compose_line([]).config), "  ")
    return HELP.format(groups=groups, defaults=defaults)


def _run_directory(line: Line) -> Path:
    """Where the run of this line goes: the run that it resumes, the folder that it names, or a fresh one."""
    from nanolm.config import check
    from nanolm.errors import raise_all
    from nanolm.runs.directory import RunDirectory, fresh

    resume = line.config.resume
    if resume not in ("never", "auto"):
        return RunDirectory(resume).require().path
    raise_all(check(line.config))
    if line.run_directory_is_given:
        return line.run_directory
    cut_off = _cut_off_run(line) if resume == "auto" else None
    return cut_off or fresh(line.run_directory)


def _cut_off_run(line: Line) -> Path | None:
    """The newest run beside the new one's place that has these very settings and did not come to its end."""
    from nanolm.config import identity
    from nanolm.runs.directory import RunDirectory

    wanted, steps = identity(line.config), line.config.trainer.max_steps
    for path in sorted(line.run_directory.parent.glob("*/summary.json"), reverse=True):
        with contextlib.suppress(NanolmError):
            summary = RunDirectory(path.parent).read_summary()
            if summary.get("identity") == wanted and not _is_complete(summary, steps):
                return path.parent
    return None


def _hydra(arguments: list[str], line: Line | None = None, ranks: Ranks | None = None) -> int:
    """Hands the line to Hydra; returns the exit status.

    Of a sweep, a job that fails is reported when it does, and the others run.

    Raises:
        NanolmError: what is wrong with a single run.
    """
    import hydra

    from nanolm.compose import CONFIG_NAME, config_folder
    from nanolm.training.ranks import ALONE

    failed: list[NanolmError] = []

    def job(composed: DictConfig) -> float | None:
        # Kept from Hydra, which has words of its own for a job that fails.
        try:
            return _job(composed, line, ranks or ALONE)
        except NanolmError as error:
            if line is None:
                print(f"nanolm: {_folder_of_job()} failed: {error}", file=sys.stderr)
            failed.append(error)
            return None

    before = sys.argv
    sys.argv = ["nanolm train", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(config_path=str(config_folder()), config_name=CONFIG_NAME, version_base="1.3")(job)()
    finally:
        sys.argv = before
    if failed and line is not None:
        raise failed[0]
    if failed:
        print(f"nanolm: {len(failed)} run{'s' if len(failed) > 1 else ''} failed, named above", file=sys.stderr)
    return max((error.exit_status for error in failed), default=0)


def _folder_of_job() -> Path:
    from hydra.core.hydra_config import HydraConfig

    return _shown(HydraConfig.get().runtime.output_dir)


def _job(composed: DictConfig, line: Line | None, ranks: Ranks) -> float | None:
    """One run, in the folder that Hydra made for it; returns what a sweeper minimises."""
    from hydra.core.hydra_config import HydraConfig

    from nanolm.compose import import_plugins, register_schemas
    from nanolm.config_file import to_config
    from nanolm.runs.directory import RunDirectory

    import_plugins(list(composed.get("plugins") or []))
    register_schemas()
    hydra_config = HydraConfig.get()
    config = to_config(composed)
    run = RunDirectory(_folder_of_job())
    with contextlib.ExitStack() as stack:
        ranks.from_main(lambda: stack.enter_context(run.claim()))
        config, changes, is_complete = ranks.from_main(lambda: _what_to_do(config, run, line))
        if is_complete:
            return _value(run.read_summary())
        from nanolm.runs.console import closing_table
        from nanolm.training.trainer import train as train_model

        choices = {
            group: str(option)
            for group, option in sorted(hydra_config.runtime.choices.items())
            if not group.startswith("hydra/") and option is not None
        }
        choices = run.read_summary().get("choices") or choices
        outcome = train_model(config, run, choices=choices, changes=changes, ranks=ranks, group=_sweep())
        if ranks.is_main:
            closing_table(outcome.summary, run, outcome.sample)
        if outcome.exit_status:
            # Past Hydra, which would start the next job of a sweep.
            sys.exit(outcome.exit_status)
        return _value(outcome.summary)


def _sweep() -> str | None:
    """The name of the sweep that this job is one of: its folder's."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra_config = HydraConfig.get()
    return Path(hydra_config.sweep.dir).resolve().name if hydra_config.mode == RunMode.MULTIRUN else None


def _what_to_do(config: Config, run: RunDirectory, line: Line | None) -> tuple[Config, list[str], bool]:
    """The settings of the job, those of the run that it goes on with; what changed in them; whether all is done.

    Raises:
        NanolmError: the folder holds a run that is not to go on, or the settings cannot be right.
    """
    from nanolm.compose import continue_run
    from nanolm.config import check
    from nanolm.config_file import load_yaml
    from nanolm.errors import raise_all

    changes: list[str] = []
    if run.exists():
        if config.resume == "never":
            raise RunError(
                "this folder holds a run already",
                where=str(run.path),
                mend="resume=auto goes on with it; another hydra.run.dir= starts anew",
            )
        if line is not None:
            config, changes = continue_run(load_yaml(run.config), line)
        summary = run.read_summary()
        if _is_complete(summary, config.trainer.max_steps):
            print(f"nothing to do: {run.path} is completed at step {summary['step']}", file=sys.stderr)
            return config, changes, True
    raise_all(check(config))
    return config, changes, False


def _is_complete(summary: dict[str, Any], max_steps: int) -> bool:
    """Whether there is nothing to go on with; a model that was counted, and so has entries, never has a next step."""
    has_all_steps = "entries" in summary or summary.get("step", 0) >= max_steps
    return summary.get("status") == "completed" and has_all_steps


def _value(summary: dict[str, Any]) -> float | None:
    return summary.get("best_val_loss")


def _shown(path: str) -> Path:
    """A path as people type it: from the current folder where it lies below it."""
    absolute = Path(path)
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute
