"""Compose a command line, or the jobs of a sweep, into typed settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.compose.diagnosis import compose_over, diagnose, lacking, unsupported_form
from nanolm.compose.hydra_api import choices_of, compose, config_folder, hydra_context, with_search_path, without_hydra
from nanolm.compose.hydra_settings import HINTS, check_override, check_search_path, hint, is_of_hydra
from nanolm.compose.launch import is_launch_option, read_launch
from nanolm.compose.overrides import (
    FAIL_FAST,
    HYDRA_FAIL_FAST,
    LIST_PART,
    expand,
    is_plain_value,
    known_keys,
    leaf_keys,
    parse,
    with_values,
)
from nanolm.compose.plugins import import_plugins, plugins_named, register_schemas
from nanolm.compose.typed import as_hydra_reads
from nanolm.compose.yaml_files import GLOBAL_GROUPS, YamlFiles
from nanolm.config.checks import check
from nanolm.config.composed import summarize_error, to_config, unknown_keys, unresolved, unresolved_values
from nanolm.config.fields import flat
from nanolm.config.launch import Launch
from nanolm.config.run import Config
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import NanolmError, Problems, SettingsError, raise_all
from nanolm.files import user_path

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Settings that name a folder, with an example.
FOLDERS = {"hydra.run.dir": "outputs/my_run", "hydra.sweep.dir": "outputs/my_sweep"}

# What was composed before, by its overrides: nanolm's settings, and the option chosen in each group.
Bases = dict[tuple[str, ...], tuple[DictConfig, dict[str, str]]]


@dataclasses.dataclass(frozen=True)
class ComposedJob:
    """The settings of one job of a sweep.

    Attributes:
        choices: the option chosen in each group, for people to read.
    """

    config: Config
    choices: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Line:
    """A `nanolm train` line that composes.

    Attributes:
        config: its settings; of a sweep, those that all jobs share.
        launch: its launch options.
        run_directory: where hydra.run.dir points.
        run_directory_is_given: whether the user chose it.
        sweep_directory: where hydra.sweep.dir points.
        choices: the option chosen in each group, for people to read.
        given: the settings that the line names itself, group choices spread into their keys.
    """

    config: Config
    launch: Launch
    run_directory: Path
    run_directory_is_given: bool
    sweep_directory: Path
    choices: dict[str, str]
    given: set[str]


def compose_line(
    overrides: Sequence[str], config_dir: str | None = None, multirun: bool = False, saved: Path | None = None
) -> Line:
    """Composes a line of overrides.

    Args:
        overrides: Hydra overrides, as typed.
        config_dir: the user's own folder of YAML files.
        multirun: whether several values of a setting may be given, separated by commas.
        saved: the config.yaml of a run that the line goes on with: its settings stand in the place of the defaults.

    Raises:
        SettingsError: with every mistake in the line.
        RunError: the run's settings cannot be read.
    """
    with hydra_context():
        launch, parsed, composed, task, files = _composed(overrides, config_dir, multirun, saved)
        raise_all([*unresolved_values(task, files.place), *_unresolved_directories(composed)])
        raise_all(_empty_paths(composed))
        return Line(
            config=to_config(task),
            launch=launch,
            run_directory=user_path(str(OmegaConf.select(composed, "hydra.run.dir"))),
            run_directory_is_given=any(override.key_or_group == "hydra.run.dir" for override in parsed),
            sweep_directory=user_path(str(OmegaConf.select(composed, "hydra.sweep.dir"))),
            choices=choices_of(composed.hydra.runtime.choices),
            given=_given(parsed, task),
        )


def check_line(
    overrides: Sequence[str], config_dir: str | None = None, is_resolved: bool = False, saved: Path | None = None
) -> DictConfig:
    """Checks that the settings of a line are there and fit, and returns them with Hydra's. They may still lack a value.

    Args:
        is_resolved: whether the interpolations in it must have values.
        saved: the config.yaml of a run that the line goes on with, as for `compose_line`.

    Raises:
        SettingsError: with every mistake in the line.
        RunError: the run's settings cannot be read.
    """
    with hydra_context():
        _, _, composed, task, files = _composed(overrides, config_dir, False, saved)
        raise_all(unknown_keys(task))
        raise_all([*unresolved_values(task, files.place), *_unresolved_directories(composed)] if is_resolved else [])
        return composed


def _composed(
    overrides: Sequence[str], config_dir: str | None, multirun: bool, saved: Path | None
) -> tuple[Launch, list[Override], DictConfig, DictConfig, YamlFiles]:
    """Parse and compose a line. Takes the arguments of `compose_line`.

    Returns:
        The launch options, the other overrides, all that Hydra composed, nanolm's settings in it, and the YAML files
        that the line chooses.

    Raises:
        NanolmError: as `compose_line`.
    """
    raise_all(_missing_folders(as_hydra_reads(overrides, multirun), config_dir))
    parsed = parse(with_search_path(as_hydra_reads(overrides, multirun), config_dir))
    launch, wrong_launch = read_launch([override for override in parsed if is_launch_option(override)], multirun)
    parsed = [override for override in parsed if not is_launch_option(override)]
    files = YamlFiles(parsed, config_dir)
    import_plugins(plugins_named(parsed, files))
    register_schemas()
    base = load_yaml(saved) if saved is not None else None
    if base is not None:
        # Whatever the run has is there to be set: nothing needs to be added.
        parsed = parse([_without_plus(override) for override in parsed])
    unsupported = [error for override in parsed if (error := unsupported_form(override))]
    misplaced = {at: error for at, override in enumerate(parsed) if (error := _misplaced(override, multirun))}
    if misplaced or unsupported or wrong_launch:
        rest = [
            override for at, override in enumerate(parsed) if at not in misplaced and unsupported_form(override) is None
        ]
        raise_all(diagnose(rest, multirun, files, base, [*wrong_launch, *unsupported, *misplaced.values()]))
    plain = [override.input_line for override in parsed if not (multirun and override.is_sweep_override())]
    first = [text for override in parsed for text in expand(override, multirun)[:1]]
    try:
        composed, task = compose_over(first, base)
        for override in parsed:
            for text in expand(override, multirun)[1:]:
                if is_plain_value(override):
                    with_values(task, parse([text]))
                else:
                    compose([*plain, text])
    except NanolmError:
        raise
    except Exception as error:
        # From the system, such as a deleted folder; Hydra's own error of a missing file is an OSError as well.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        problems = diagnose(parsed, multirun, files, base)
        raise_all(problems)
        in_lists = ", ".join(word.input_line or "" for word in parsed if LIST_PART.search(word.key_or_group))
        raise SettingsError(summarize_error(error), where=in_lists or "the command line") from error
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(composed)
    if _has_no_place(task):
        raise_all(files.check(choices_of(composed.hydra.runtime.choices)))
    raise_all(files.unnamed(task, choices_of(composed.hydra.runtime.choices)))
    return launch, parsed, composed, task, files


def _missing_folders(overrides: Sequence[str], config_dir: str | None) -> list[NanolmError]:
    """Folders of options that are not there."""
    problems: list[NanolmError] = []
    if config_dir is not None and not (config_dir and user_path(config_dir).is_dir()):
        name = config_dir or "without a name"
        problems.append(
            SettingsError(f"there is no folder {name}", where="--config-dir", hint="name an existing folder")
        )
    for override in parse(overrides):
        if override.key_or_group == "hydra.searchpath" and not check_search_path([word := override.input_line or ""]):
            folders = override.value() if isinstance(override.value(), list) else [""]
            paths = [str(folder).removeprefix("file://") for folder in folders]
            missing = [path for path in paths if not (path and Path(path).is_dir())]
            problems += [
                SettingsError(
                    f"there is no folder {path or 'without a name'}", where=word, hint=HINTS["hydra.searchpath"]
                )
                for path in missing
            ]
    return problems


def _without_plus(override: Override) -> str:
    word = override.input_line or ""
    is_setting = "." in override.key_or_group and not override.key_or_group.startswith("hydra.")
    return word.lstrip("+") if is_setting and not LIST_PART.search(override.key_or_group) else word


def _has_no_place(task: DictConfig) -> bool:
    """Whether a file's settings went where there are none."""
    return any(key not in Config.__dataclass_fields__ for key in task)


def _unresolved_directories(composed: DictConfig) -> list[NanolmError]:
    problems: list[NanolmError] = []
    for kind in ("run", "sweep"):
        try:
            OmegaConf.select(composed, f"hydra.{kind}.dir")
        except (OmegaConfBaseException, RecursionError) as error:
            raw = OmegaConf.to_container(composed.hydra[kind], resolve=False)["dir"]  # type: ignore[index, call-overload]
            problems.append(unresolved(f"hydra.{kind}.dir", raw, error))
    return problems


def _empty_paths(composed: DictConfig) -> list[NanolmError]:
    """Paths of runs that are empty, as an unset variable of the shell leaves them: the current folder is not meant."""
    return [_empty(key) for key in FOLDERS if not str(OmegaConf.select(composed, key) or "").strip()]


def _empty(key: str) -> SettingsError:
    return SettingsError(
        f"{key} is empty", where=f"{key}=", hint=f"name a folder, as in {key}={FOLDERS[key]}, or leave it out"
    )


def compose_config(words: Sequence[str], bases: Bases) -> Config:
    """The settings of the line of one run, unchecked, for who asks for many.

    Hydra composes each choice of options once; plain values are set in copies of it, which is what Hydra does with
    them, in a tenth of the time.

    Args:
        words: overrides, none with several values.
        bases: what was composed before, by the words that are no plain values; what is missing is added.

    Raises:
        SettingsError: with every mistake in the line.
    """
    try:
        return _from_bases(parse(as_hydra_reads(words)), bases).config
    except Exception:
        return compose_line(words).config


def _from_bases(line: Sequence[Override], bases: Bases) -> ComposedJob:
    values = [override for override in line if is_plain_value(override)]
    others = [override.key_or_group for override in line if override not in values]
    if any(
        _is_part(value.key_or_group, key) or _is_part(key, value.key_or_group) for value in values for key in others
    ):
        values = []  # Such as ++a.b=2 behind a={b:1}: their order counts.
    rest = tuple(override.input_line or "" for override in line if override not in values)
    if rest not in bases:
        register_schemas()
        with hydra_context():
            composed = compose(rest)
            bases[rest] = without_hydra(composed), choices_of(composed.hydra.runtime.choices)
    task, choices = bases[rest]
    return ComposedJob(to_config(with_values(task, values)), choices)


def _is_part(key: str, of: str) -> bool:
    return f"{key}.".startswith(f"{of}.") and "." in of


def compose_jobs(
    jobs: Sequence[Sequence[str]],
    config_dir: str | None = None,
    searched: Sequence[str] = (),
    *,
    problems_of: Callable[[Config], list[NanolmError]] = check,
) -> list[ComposedJob]:
    """Composes the jobs of a sweep, each a line without several values, and checks their settings.

    Args:
        config_dir: the user's own folder of YAML files.
        searched: `hydra.searchpath=` words, which hold for all jobs.
        problems_of: what is wrong with a job's settings.

    Raises:
        SettingsError: with every mistake in every job, each once.
    """
    parsed = [parse(as_hydra_reads(words)) for words in jobs]
    shared = {
        override.input_line: override
        for line in parsed
        for override in line
        if is_of_hydra(override) or is_launch_option(override)
    }
    raise_all(
        [
            SettingsError(
                f"{word} is set for some jobs of a sweep",
                where="params or variants of the sweep",
                hint=hint(override.key_or_group) or "give it on the command line, for all jobs",
            )
            for word, override in shared.items()
        ]
    )
    lines = [[*line, *parse(with_search_path(as_hydra_reads(searched), config_dir))] for line in parsed]
    every = list({override.input_line: override for line in lines for override in line}.values())
    import_plugins(dict.fromkeys(plugins_named(every, YamlFiles(every, config_dir))))
    bases: Bases = {}
    composed: list[ComposedJob | None] = []
    for line in lines:
        try:
            composed.append(_from_bases(line, bases))
        except Exception:
            composed.append(None)
    problems: dict[str, NanolmError] = {}
    asked_about: set[str] = set()
    for at, words in enumerate(jobs):
        if composed[at] is None and asked_about.issuperset(words):
            continue
        try:
            # What does not compose is composed once more, by the one who says which words are to blame.
            job = composed[at] or _composed_alone([*words, *searched], config_dir)
            composed[at] = job
            raise_all(problems_of(job.config))
        except NanolmError as error:
            asked_about |= set(words) if composed[at] is None else set()
            found = error.problems if isinstance(error, Problems) else [error]
            found = [_of_an_option(problem, lines[at], composed) for problem in found]
            problems |= {problem.found: problem for problem in found if problem.found not in problems}
    raise_all(list(problems.values()))
    return [job for job in composed if job is not None]


def _composed_alone(words: Sequence[str], config_dir: str | None) -> ComposedJob:
    line = compose_line(words, config_dir, multirun=True)
    return ComposedJob(line.config, line.choices)


def _of_an_option(
    problem: NanolmError, line: Sequence[Override], composed: Sequence[ComposedJob | None]
) -> NanolmError:
    """Names the option that lacks a setting, where other jobs of the sweep have it."""
    for override in line:
        key = override.key_or_group
        if problem.found == f"there is no setting {key!r}":
            group = key.split(".")[0]
            chosen = [other.input_line or "" for other in line if other.key_or_group in (group, *GLOBAL_GROUPS)]
            if chosen and any(job is not None and key in flat(job.config) for job in composed):
                return lacking(chosen[-1:], key, ["another job"], override.input_line or key)
    return problem


def _misplaced(override: Override, multirun: bool) -> SettingsError | None:
    """What is said of a sweep in the line of one run, or said several times of the one sweep."""
    key, word = override.key_or_group, (override.input_line or "").replace(HYDRA_FAIL_FAST, FAIL_FAST)
    is_study = key == "sweep"
    if not multirun and (is_study or key in (FAIL_FAST, HYDRA_FAIL_FAST)):
        return SettingsError(
            f"{word} is about many runs", where="the command line", hint="nanolm train -m ... runs them"
        )
    if problem := check_override(override, multirun):
        return problem
    if key in FOLDERS and not override.is_delete() and override.value() is None:
        return _empty(key)
    if not (multirun and override.is_sweep_override()):
        return None
    if is_study:
        return SettingsError(f"{word} names several studies", where="sweep", hint="a line for each of them")
    if is_of_hydra(override):
        return SettingsError(
            f"{word} gives several values of what a sweep has one of",
            where=key.replace(HYDRA_FAIL_FAST, FAIL_FAST),
            hint="one value; one with a comma in it is quoted: 'key=\"a,b\"'",
        )
    return None


def hidden_options(config_dir: str) -> list[str]:
    """Files in the user's folder that nanolm's own of the same name hide."""
    folder = user_path(config_dir)
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
    return [str(path) for path in files if (config_folder() / path).exists()]


def _given(parsed: Sequence[Override], task: DictConfig) -> set[str]:
    """The keys that the line itself names; choosing an option names every key of its group."""
    known = known_keys(task)
    given: set[str] = set()
    for override in parsed:
        key = override.key_or_group
        if key in ("experiment", "sweep"):
            continue
        # A part of a list (scheduler.parts.0.gamma) is given where the list is.
        given |= {name for name in known if f"{name}.".startswith(f"{key}.") or f"{key}.".startswith(f"{name}.")}
    return given & leaf_keys(task)
