"""Read the launch options (resume, fork, dry_run, profile) of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from nanolm import shell
from nanolm.config.composed import unresolved, unresolved_values
from nanolm.config.launch import ALIASES, BOOLEANS, LAUNCH_KEYS, NEVER, Launch
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, SettingsError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def is_launch_option(override: Override) -> bool:
    return override.key_or_group in LAUNCH_KEYS


def read_launch(overrides: Sequence[Override], multirun: bool = False) -> tuple[Launch, list[NanolmError]]:
    """Read the launch options among overrides. The last value of an option counts.

    Args:
        overrides: of a command line; those that are no launch options are ignored.
        multirun: whether the command line is a sweep.

    Returns:
        The launch options, and everything that is wrong with them; the former mean nothing if there are problems.
    """
    node = OmegaConf.structured(Launch)
    parent = ""
    problems: list[NanolmError] = []
    for override in filter(is_launch_option, overrides):
        name, text = ALIASES.get(override.key_or_group, override.key_or_group), override.input_line
        value = override.value()
        if problem := _unsupported_form(override):
            problems.append(problem)
        elif (name == "resume" and value is None) or (
            name in ("resume", "fork") and isinstance(value, str) and not value.strip()
        ):
            hint = f"name a run, as in {name}=outputs/my_run, or leave it out"
            problems.append(SettingsError(f"{name} is empty", where=f"{name}=", hint=hint))
        elif type(value) is int and value not in (0, 1) and name != "resume":
            # OmegaConf takes any whole number for a boolean.
            problems.append(explain_value(node, name, value, text) or SettingsError(text, where=text))
        else:
            is_parent = name == "fork" and isinstance(value, str) and value.lower() not in BOOLEANS
            try:
                if is_parent:
                    node.fork, parent = True, value
                else:
                    node[name] = value
            except GrammarParseError as error:
                problems.append(_unresolved(unresolved(name, value, error)))
            except MISFITS as error:
                problems.append(explain_value(node, name, value, text) or SettingsError(str(error), where=text))
    if parent and node._get_node("resume") != NEVER and node._get_node("resume") != parent:
        problems.append(
            SettingsError(
                f"fork={parent} and resume={node.resume} name two runs",
                where="fork, resume",
                hint="fork=RUN starts a new run from RUN, and resume=RUN continues it: leave out one of them",
            )
        )
    elif parent:
        try:
            node.resume = parent
        except GrammarParseError as error:
            problems.append(_unresolved(unresolved("fork", parent, error)))
    problems += map(_unresolved, unresolved_values(node))
    if problems:
        return Launch(), problems
    launch = OmegaConf.to_object(node)
    assert isinstance(launch, Launch)
    return launch, _wrong_combinations(launch, multirun)


def _unresolved(error: NanolmError) -> SettingsError:
    hint = "${oc.env:NAME} is an environment variable; a launch option cannot refer to a setting"
    return SettingsError(error.found, where=error.where, hint=hint)


def _unsupported_form(override: Override) -> SettingsError | None:
    """Return what is wrong with an override that is not of the form option=value."""
    key, text = override.key_or_group, override.input_line
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


def _wrong_combinations(launch: Launch, multirun: bool) -> list[NanolmError]:
    """Return the launch options that contradict each other, or that a sweep cannot have."""
    checks = [
        (
            multirun and launch.dry_run,
            "dry_run=true estimates a single run, and -m starts several",
            "dry_run",
            "run the command of one of them, without -m",
        ),
        (
            multirun and launch.fork,
            "fork=true is not supported in a sweep",
            "fork",
            "run one command without -m for each fork",
        ),
        (
            multirun and not launch.fork and launch.resumed_path is not None,
            f"{shell.quote(f'resume={launch.resume}')} resumes a single run, and -m starts several",
            "resume",
            "leave it out: a sweep resumes its own runs",
        ),
        (
            not multirun and launch.fork and launch.resumed_path is None,
            f"fork=true starts from another run, but resume is {launch.resume}",
            "fork, resume",
            "fork=RUN_DIR, or fork=RUN_DIR/checkpoints/step-N",
        ),
    ]
    return [SettingsError(found, where=where, hint=hint) for is_wrong, found, where, hint in checks if is_wrong]
