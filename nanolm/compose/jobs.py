"""Compose many runs: the jobs of a sweep, which share most of their overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from nanolm.compose.command import compose_command
from nanolm.compose.diagnosis import lacking
from nanolm.compose.hydra_api import choices_of, compose, hydra_context, with_search_path, without_hydra
from nanolm.compose.hydra_settings import hint
from nanolm.compose.launch import is_launch_option
from nanolm.compose.overrides import is_of_hydra, is_part, is_plain_value, parse, with_values
from nanolm.compose.plugins import import_plugins, plugins_named, register_schemas
from nanolm.compose.syntax import to_hydra_syntax
from nanolm.compose.yaml_files import GLOBAL_GROUPS, YamlFiles
from nanolm.config.budget import drop_replaced
from nanolm.config.checks import check
from nanolm.config.composed import to_config
from nanolm.config.fields import flat
from nanolm.config.run import Config
from nanolm.errors import NanolmError, Problems, SettingsError, raise_all

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Cache of compositions: nanolm's settings and the option chosen in each group, by the overrides they come from.
Bases = dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]]


@dataclasses.dataclass(frozen=True)
class ComposedJob:
    """The settings of one job of a sweep.

    Attributes:
        choices: the option chosen in each group.
    """

    config: Config
    choices: dict[str, str]


def compose_jobs(
    jobs: Sequence[Sequence[str]],
    config_dir: str | None = None,
    searched: Sequence[str] = (),
    *,
    problems_of: Callable[[Config], list[NanolmError]] = check,
) -> list[ComposedJob]:
    """Compose and check the jobs of a sweep.

    Args:
        jobs: overrides of each job, without several values.
        config_dir: the user's own folder of YAML files.
        searched: `hydra.searchpath=` overrides, which apply to all jobs.
        problems_of: returns what is wrong with the settings of a job.

    Raises:
        SettingsError: with every mistake in every job, each once.
    """
    parsed = [parse(to_hydra_syntax(overrides)) for overrides in jobs]
    _require_same_launch(parsed)
    lines = [[*job, *with_search_path(parse(to_hydra_syntax(searched)), config_dir)] for job in parsed]
    every = list({override.input_line: override for line in lines for override in line}.values())
    import_plugins(dict.fromkeys(plugins_named(every, YamlFiles(every, config_dir))))
    bases: Bases = {}
    composed: list[ComposedJob | None] = []
    for line in lines:
        try:
            composed.append(compose_job(line, bases))
        except Exception:
            composed.append(None)
    problems: dict[str, NanolmError] = {}
    diagnosed: set[str] = set()
    for at, overrides in enumerate(jobs):
        if composed[at] is None and diagnosed.issuperset(overrides):
            continue
        try:
            # Compose a job that failed once more, in the way that names the overrides to blame.
            if (job := composed[at]) is None:
                command = compose_command([*overrides, *searched], config_dir, multirun=True)
                job = composed[at] = ComposedJob(command.config, command.choices)
            raise_all(problems_of(job.config))
        except NanolmError as error:
            diagnosed |= set(overrides) if composed[at] is None else set()
            found = error.problems if isinstance(error, Problems) else [error]
            found = [_of_an_option(problem, lines[at], composed) for problem in found]
            problems |= {problem.found: problem for problem in found if problem.found not in problems}
    raise_all(list(problems.values()))
    return [job for job in composed if job is not None]


def _require_same_launch(jobs: Sequence[Sequence[Override]]) -> None:
    """Refuse settings of Hydra and launch options in single jobs."""
    shared = {
        override.input_line: override
        for job in jobs
        for override in job
        if is_of_hydra(override) or is_launch_option(override)
    }
    raise_all(
        [
            SettingsError(
                f"{text} is set for some jobs of a sweep",
                where="params or variants of the sweep",
                hint=hint(override.key_or_group) or "give it on the command line, for all jobs",
            )
            for text, override in shared.items()
        ]
    )


def compose_job(overrides: Sequence[Override], bases: Bases) -> ComposedJob:
    """Compose overrides without several values, reusing earlier compositions. The settings are not checked.

    Hydra composes each choice of options once; plain values are set in copies of it. The result is that of Hydra, in a
    tenth of the time.

    Args:
        overrides: parsed.
        bases: earlier compositions; new ones are added.
    """
    values = [override for override in overrides if is_plain_value(override)]
    others = [override.key_or_group for override in overrides if override not in values]
    if any(
        is_part(value.key_or_group, key) or is_part(key, value.key_or_group)
        for value in values
        for key in others
        if "." in key
    ):
        values = []  # Such as a={b:1} ++a.b=2: their order counts.
    rest = tuple(override.input_line for override in overrides if override not in values)
    if rest not in bases:
        register_schemas()
        with hydra_context():
            composed = compose(rest)
            bases[rest] = without_hydra(composed), choices_of(composed.hydra.runtime.choices)
    task, choices = bases[rest]
    config = to_config(with_values(task, values))
    drop_replaced(config.trainer, {override.key_or_group for override in overrides})
    return ComposedJob(config, choices)


def _of_an_option(
    problem: NanolmError, overrides: Sequence[Override], composed: Sequence[ComposedJob | None]
) -> NanolmError:
    """Name the option that does not have a setting, if other jobs of the sweep have it."""
    for override in overrides:
        key = override.key_or_group
        if problem.found == f"there is no setting {key!r}":
            groups = (key.split(".")[0], *GLOBAL_GROUPS)
            chosen = [other.input_line for other in overrides if other.key_or_group in groups]
            if chosen and any(job is not None and key in flat(job.config) for job in composed):
                return lacking(chosen[-1:], key, ["another job"], override.input_line)
    return problem
