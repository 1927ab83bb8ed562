"""Parse the flags of Hydra that `nanolm train` accepts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from nanolm.compose.syntax import to_hydra_syntax
from nanolm.errors import SettingsError, raise_all

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
        raise SettingsError(
            message, where="the command line", hint="settings are key=value, for example optimizer.lr=1e-3"
        )

    parser.error = refuse
    flags = parser.parse_intermixed_args(arguments)
    flags.parser = parser
    if flags.help:
        return flags
    problems = [
        SettingsError(f"--{name.replace('_', '-')} is not supported", where="the command line", hint=hint)
        for name, hint in UNSUPPORTED_FLAGS.items()
        if getattr(flags, name) is not None
    ]
    if flags.run and flags.multirun:
        problems.append(SettingsError("--run and -m exclude each other", where="the command line", hint="drop one"))
    if flags.cfg and flags.multirun:
        problems.append(
            SettingsError(
                "--cfg prints the settings of one run, and -m starts several",
                where="the command line",
                hint="leave out -m",
            )
        )
    problems += [
        SettingsError(f"--{name} has no effect without --cfg", where="the command line", hint="add --cfg job")
        for name in ("resolve", "package")
        if getattr(flags, name) and not flags.cfg
    ]
    raise_all(problems)
    flags.overrides = to_hydra_syntax(flags.overrides, bool(flags.multirun))
    return flags
