"""Read the launch options (resume, fork, dry_run, profile) of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from nanolm import shell
from nanolm.compose.overrides import parse
from nanolm.config.composed import unresolved, unresolved_values
from nanolm.config.launch import ALIASES, LAUNCH_KEYS, Launch
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, SettingsError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def is_launch_option(override: Override) -> bool:
    return override.key_or_group in LAUNCH_KEYS


def without_launch_options(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that set something of the experiment or of Hydra."""
    return [override.input_line or "" for override in parse(overrides) if not is_launch_option(override)]


def read_launch(overrides: Sequence[Override], multirun: bool = False) -> tuple[Launch, list[NanolmError]]:
    """Read launch options. The last value of an option counts.

    Args:
        overrides: launch options only.
        multirun: whether the command line is a sweep.

    Returns:
        The launch options, and everything that is wrong with them; the former mean nothing if there are problems.
    """
    node = OmegaConf.structured(Launch)
    problems: list[NanolmError] = []
    for override in overrides:
        name, text = ALIASES.get(override.key_or_group, override.key_or_group), override.input_line or ""
        if problem := _unsupported_form(override):
            problems.append(problem)
        elif name == "resume" and not str("" if override.value() is None else override.value()).strip():
            problems.append(
                SettingsError(
                    "resume is empty", where="resume=", hint="name a run, as in resume=outputs/my_run, or leave it out"
                )
            )
        elif type(override.value()) is int and override.value() not in (0, 1) and name != "resume":
            # OmegaConf takes any whole number for a boolean.
            problems.append(explain_value(node, name, override.value(), text) or SettingsError(text, where=text))
        else:
            try:
                node[name] = override.value()
            except GrammarParseError as error:
                problems.append(_unresolved(unresolved(name, override.value(), error)))
            except MISFITS as error:
                explained = explain_value(node, name, override.value(), text)
                problems.append(explained or SettingsError(str(error), where=text))
    problems += map(_unresolved, unresolved_values(node))
    if problems:
        return Launch(), problems
    launch = OmegaConf.to_object(node)
    assert isinstance(launch, Launch)
    return launch, _wrong_for_a_sweep(launch) if multirun else _wrong_fork(launch)


def _unresolved(error: NanolmError) -> SettingsError:
    hint = "${oc.env:NAME} is an environment variable; a launch option cannot refer to a setting"
    return SettingsError(error.found, where=error.where, hint=hint)


def _unsupported_form(override: Override) -> SettingsError | None:
    """Return what is wrong with an override that is not of the form option=value."""
    key, text = override.key_or_group, override.input_line or ""
    plain = f"{key}={text.partition('=')[2]}"
    if override.is_delete():
        hint = f"leave it out for its default, or {key}=VALUE"
        return SettingsError(f"{text}: a launch option cannot be removed", where=text, hint=hint)
    if override.is_add():
        return SettingsError(f"{text}: {key} exists already and needs no +", where=text, hint=plain)
    if override.package is not None:
        return SettingsError(f"{text}: {key} has no package", where=text, hint=plain)
    if override.is_sweep_override():
        hint = "give it one value" + ("; quote a path with commas: 'resume=\"a,b\"'" if key == "resume" else "")
        return SettingsError(f"{text} gives several values", where=key, hint=hint)
    return None


def _wrong_fork(launch: Launch) -> list[NanolmError]:
    if not launch.fork or launch.resumed_path is not None:
        return []
    return [
        SettingsError(
            f"fork=true starts from another run, but resume is {launch.resume}",
            where="fork, resume",
            hint="resume=RUN_DIR fork=true, or resume=RUN_DIR/checkpoints/step-N fork=true",
        )
    ]


def _wrong_for_a_sweep(launch: Launch) -> list[NanolmError]:
    """Return the launch options that only a single run can have."""
    problems: list[NanolmError] = []
    if launch.dry_run:
        problems.append(
            SettingsError(
                "dry_run=true estimates a single run, and -m starts several",
                where="dry_run",
                hint="run the command of one of them, without -m",
            )
        )
    if launch.fork:
        problems.append(
            SettingsError(
                "fork=true is not supported in a sweep", where="fork", hint="run one command without -m for each fork"
            )
        )
    elif launch.resumed_path is not None:
        problems.append(
            SettingsError(
                f"{shell.quote(f'resume={launch.resume}')} resumes a single run, and -m starts several",
                where="resume",
                hint="leave it out: a sweep resumes its own runs",
            )
        )
    return problems
