"""The command line of Hydra itself: its flags, of which some print something (--cfg, --info, ...), and sweeps (-m)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from nanolm.compose.command import compose_unresolved
from nanolm.compose.hydra_api import CONFIG_NAME, hydra_context
from nanolm.compose.launch import is_launch_option
from nanolm.compose.overrides import parse, quoted
from nanolm.compose.plugins import register_schemas
from nanolm.compose.syntax import to_hydra_syntax
from nanolm.config.composed import summarize_error
from nanolm.errors import NanolmError, SettingsError, nearest, raise_all
from nanolm.files import user_path

# Flags of Hydra that nanolm does not support, and what to do instead.
UNSUPPORTED_FLAGS = {
    "config_path": "--config-dir FOLDER adds your own options to nanolm's",
    "config_name": "write an experiment file, and choose it with --config-dir FOLDER experiment=NAME",
    "experimental_rerun": "it would execute what is in a pickle; nanolm train resume=RUN resumes a run",
}


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse flags, anywhere on the command line, and overrides (rewritten by `to_hydra_syntax`).

    Raises:
        SettingsError: with every flag that does not exist, is not supported or contradicts another one.
    """
    # Private, but the only list of Hydra's flags; --hydra-help needs this parser as well.
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        hint = "settings are key=value, for example optimizer.lr=1e-3"
        raise SettingsError(message, where="the command line", hint=hint)

    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    flags.parser = parser
    if flags.help:
        return flags
    checks = [
        *(
            (getattr(flags, name) is not None, f"--{name.replace('_', '-')} is not supported", hint)
            for name, hint in UNSUPPORTED_FLAGS.items()
        ),
        (flags.run and flags.multirun, "--run and -m exclude each other", "drop one"),
        (flags.cfg and flags.multirun, "--cfg prints the settings of one run, and -m starts several", "leave out -m"),
        *(
            (getattr(flags, name) and not flags.cfg, f"--{name} has no effect without --cfg", "add --cfg job")
            for name in ("resolve", "package")
        ),
    ]
    raise_all(
        [SettingsError(found, where="the command line", hint=hint) for is_wrong, found, hint in checks if is_wrong]
    )
    flags.overrides = to_hydra_syntax(flags.overrides, bool(flags.multirun))
    return flags


def prints_something(flags: argparse.Namespace) -> bool:
    """Whether the command line asks for output of Hydra instead of a run."""
    return bool(flags.hydra_help or flags.cfg or flags.info is not None or flags.shell_completion)


def print_answer(flags: argparse.Namespace, saved: Path | None = None) -> None:
    """Print what the flags ask for.

    Args:
        flags: as `parse_flags` returns them.
        saved: the config.yaml of the run that the command line resumes.

    Raises:
        SettingsError: with every mistake in the command line.
    """
    register_schemas()
    if flags.cfg or flags.info is not None:
        composed = compose_unresolved(flags.overrides, flags.config_dir, is_resolved=flags.resolve, saved=saved)
        _check_package(flags, composed)
        if flags.cfg:
            _print_settings(composed, flags)
            return
    try:
        _call_hydra(flags, lambda composed: None)
    except NanolmError:
        raise
    except Exception as error:
        if flags.shell_completion:
            hint = 'eval "$(nanolm train --shell-completion install=bash)"'
            raise SettingsError(str(error), where="--shell-completion", hint=hint) from error
        asked = "--hydra-help" if flags.hydra_help else f"--info {flags.info}"
        hint = "`nanolm train --hydra-help` lists the flags"
        raise SettingsError(summarize_error(error), where=asked, hint=hint) from error


def run_sweep(flags: argparse.Namespace, directory: Path, job: Callable[[DictConfig], Any]) -> Any:
    """Have Hydra run a sweep, and return what its sweeper returns.

    Args:
        flags: as `parse_flags` returns them.
        directory: directory of the sweep.
        job: called with the composed configuration of each run.

    Raises:
        NanolmError: a setting is not supported, or a job is wrong.
    """
    flags.overrides.append(f"hydra.sweep.dir={quoted(str(directory.absolute()))}")
    return _call_hydra(flags, job)


def _check_package(flags: argparse.Namespace, composed: DictConfig) -> None:
    """Refuse a --package that is not in the output."""
    package = flags.package
    if package and flags.cfg == "job" and package.split(".")[0] == "hydra":
        raise SettingsError("--cfg job leaves out hydra", where="--package", hint="--cfg hydra, or --cfg all")
    if package and package != "_global_" and OmegaConf.select(composed, package, throw_on_missing=False) is None:
        groups = [name for name in map(str, composed) if name != "hydra"]
        raise SettingsError(f"there is no package {package!r}", where="--package", hint=nearest(package, groups))


def _print_settings(composed: DictConfig, flags: argparse.Namespace) -> None:
    """Print composed settings as YAML; Hydra itself would print the defaults of a run that is resumed."""
    from hydra.core.global_hydra import GlobalHydra

    from nanolm import terminal

    with hydra_context():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        OmegaConf.set_readonly(composed.hydra, None)
        shown = hydra.get_sanitized_cfg(composed, flags.cfg)
        package = None if flags.package == "_global_" else flags.package
        part = OmegaConf.select(shown, package) if package else shown
        if not OmegaConf.is_config(part):
            terminal.write(str(part))
            return
        if flags.resolve:
            OmegaConf.resolve(part)
        terminal.write((f"# @package {package}\n" if package else "") + OmegaConf.to_yaml(part).rstrip("\n"))


def _call_hydra(flags: argparse.Namespace, job: Callable[[DictConfig], Any]) -> Any:
    """Call the method of Hydra that the flags ask for, and return the result of a sweep.

    hydra.main is not used: it composes before nanolm can check what Hydra would instantiate.
    """
    from hydra.core.global_hydra import GlobalHydra

    from nanolm.compose.hydra_app import create_hydra

    # --hydra-help does not depend on a configuration.
    folder = str(user_path(flags.config_dir)) if flags.config_dir and not flags.hydra_help else None
    hydra = create_hydra(folder)
    leading = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    GlobalHydra.instance().initialize(hydra)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        if flags.hydra_help:
            flags.overrides = []
            hydra.hydra_help(None, args_parser=flags.parser, args=flags)
        elif flags.shell_completion:
            hydra.shell_completion(CONFIG_NAME, flags.overrides)
        else:
            overrides = [override.input_line for override in parse(flags.overrides) if not is_launch_option(override)]
            if flags.info is not None:
                hydra.show_info(flags.info, CONFIG_NAME, overrides)
            else:
                return hydra.multirun(CONFIG_NAME, job, overrides)
        return None
    finally:
        GlobalHydra.instance().hydra = leading
