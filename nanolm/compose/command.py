"""Compose a command line into typed settings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nanolm.compose.diagnosis import Base, compose_over, diagnose
from nanolm.compose.hydra_api import choices_of, compose, config_folder, hydra_context, with_search_path
from nanolm.compose.launch import is_launch_option, read_launch
from nanolm.compose.override_checks import DIRECTORIES, empty_directory, missing_folders, override_problem
from nanolm.compose.overrides import LIST_PART, expand, is_part, is_plain_value, parse, with_values
from nanolm.compose.plugins import import_plugins, plugins_named, register_schemas
from nanolm.compose.syntax import to_hydra_syntax
from nanolm.compose.yaml_files import GLOBAL_GROUPS, YamlFiles
from nanolm.config.budget import drop_replaced
from nanolm.config.composed import (
    settings_from_environment,
    summarize_error,
    to_config,
    unknown_keys,
    unresolved,
    unresolved_values,
)
from nanolm.config.fields import flat
from nanolm.config.launch import Launch
from nanolm.config.model import LoraConfig, TransformerConfig
from nanolm.config.run import Config
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.files import user_path

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclasses.dataclass(frozen=True)
class ComposedCommand:
    """A `nanolm train` command line, composed.

    Attributes:
        config: its settings; of a sweep, those that all jobs share.
        launch: its launch options.
        run_directory: hydra.run.dir.
        run_directory_is_given: whether the command line sets it.
        sweep_directory: hydra.sweep.dir.
        choices: the option chosen in each group.
        given: the keys that the command line sets, for a fork also by an experiment; choosing an option sets every key
            of its group.
        from_environment: the settings that have the value of an environment variable, by variable; paths are left out.
    """

    config: Config
    launch: Launch
    run_directory: Path
    run_directory_is_given: bool
    sweep_directory: Path
    choices: dict[str, str]
    given: set[str]
    from_environment: dict[str, list[str]]


def compose_command(
    overrides: Sequence[str], config_dir: str | None = None, multirun: bool = False, saved: Path | None = None
) -> ComposedCommand:
    """Compose overrides, launch options among them.

    Args:
        overrides: as typed.
        config_dir: the user's own folder of YAML files.
        multirun: whether a setting may have several values, separated by commas.
        saved: the config.yaml of the run that is resumed or forked; its settings replace the defaults.

    Raises:
        SettingsError: with every mistake in the command line.
        RunError: the run's settings cannot be read.
    """
    with hydra_context():
        launch, parsed, composed, task, files = _compose(overrides, config_dir, multirun, saved)
        raise_all([*unresolved_values(task, files.place), *_unresolved_directories(composed)])
        raise_all(
            [empty_directory(key) for key in DIRECTORIES if not str(OmegaConf.select(composed, key) or "").strip()]
        )
        config = to_config(task)
        keys = _given_keys(parsed, files if launch.fork else None)
        replaced = drop_replaced(config.trainer, keys)
        given = _given(keys, config) | replaced
        if saved is not None:
            drop_disabled_adapters(config, given)
        return ComposedCommand(
            config=config,
            launch=launch,
            run_directory=user_path(str(OmegaConf.select(composed, "hydra.run.dir"))),
            run_directory_is_given=any(override.key_or_group == "hydra.run.dir" for override in parsed),
            sweep_directory=user_path(str(OmegaConf.select(composed, "hydra.sweep.dir"))),
            choices=choices_of(composed.hydra.runtime.choices),
            given=given,
            from_environment=settings_from_environment(task, config),
        )


def compose_unresolved(
    overrides: Sequence[str], config_dir: str | None = None, is_resolved: bool = False, saved: Path | None = None
) -> DictConfig:
    """Compose overrides into nanolm's and Hydra's settings, of which some may still lack a value.

    Arguments and errors are those of `compose_command`; is_resolved is whether all interpolations must have values.
    """
    with hydra_context():
        _, parsed, composed, task, files = _compose(overrides, config_dir, False, saved)
        raise_all(list(unknown_keys(task)))
        if is_resolved:
            raise_all([*unresolved_values(task, files.place), *_unresolved_directories(composed)])
        with contextlib.suppress(OmegaConfBaseException):
            drop_replaced(composed.trainer, _given_keys(parsed))
        return composed


def drop_disabled_adapters(config: Config, given: Collection[str]) -> None:
    """Reset the settings of the adapters of a run if `model.lora.rank=null` is the only one of them that is given."""
    if {key for key in given if key.startswith("model.lora.")} == {"model.lora.rank"}:
        model = config.model
        if isinstance(model, TransformerConfig) and not model.has_adapters:
            model.lora = LoraConfig()


def warnings_about(command: ComposedCommand, config_dir: str | None) -> list[str]:
    """Return what the user should know about a command line that can be run.

    Args:
        config_dir: the user's own folder of YAML files, of which some may not be read.
    """
    hidden = hidden_options(config_dir) if config_dir else []
    return [f"{config_dir}/{name} is not read: nanolm has its own {name}" for name in hidden] + [
        f"warning: the value of the environment variable {variable} becomes part of {', '.join(settings)}, "
        "which is saved in config.yaml and sent to the loggers: leave it out if it is secret"
        for variable, settings in command.from_environment.items()
    ]


def hidden_options(config_dir: str) -> list[str]:
    """Return the files in the user's folder that are not read, because nanolm has an option of the same name."""
    folder = user_path(config_dir)
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*.yaml")))
    return [str(path) for path in files if (config_folder() / path).exists()]


def _compose(
    overrides: Sequence[str], config_dir: str | None, multirun: bool, saved: Path | None
) -> tuple[Launch, list[Override], DictConfig, DictConfig, YamlFiles]:
    """Parse and compose a command line, with the arguments and errors of `compose_command`.

    Returns:
        The launch options, the other overrides, everything that Hydra composed, nanolm's settings in it, and the YAML
        files that the command line chooses.
    """
    parsed = parse(to_hydra_syntax(overrides, multirun))
    raise_all(missing_folders(parsed, config_dir))
    launch, wrong_launch = read_launch(parsed, multirun)
    parsed = with_search_path([override for override in parsed if not is_launch_option(override)], config_dir)
    files = YamlFiles(parsed, config_dir)
    import_plugins(plugins_named(parsed, files))
    register_schemas()
    base = Base(load_yaml(saved), *(files.of_experiment() if launch.fork else ())) if saved is not None else None
    if base is not None:
        # Every setting of the run can be set without adding it.
        parsed = parse([_without_plus(override) for override in parsed])
    problems = [override_problem(override, multirun) for override in parsed]
    if wrong := [*wrong_launch, *(problem for problem in problems if problem)]:
        sound = [override for override, problem in zip(parsed, problems, strict=True) if problem is None]
        raise_all(diagnose(sound, multirun, files, base, wrong))
    fixed = [override.input_line for override in parsed if not (multirun and override.is_sweep_override())]
    first = [text for override in parsed for text in expand(override, multirun)[:1]]
    try:
        composed, task = compose_over(first, base)
        for override in parsed:
            for text in expand(override, multirun)[1:]:
                if is_plain_value(override):
                    with_values(task, parse([text]))
                else:
                    compose([*fixed, text])
    except NanolmError:
        raise
    except Exception as error:
        # An error of the system, such as a deleted folder. Hydra's own error for a missing file has no errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise_all(diagnose(parsed, multirun, files, base))
        in_lists = ", ".join(override.input_line for override in parsed if LIST_PART.search(override.key_or_group))
        raise SettingsError(summarize_error(error), where=in_lists or "the command line") from error
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(composed)
    choices = choices_of(composed.hydra.runtime.choices)
    if any(key not in Config.__dataclass_fields__ for key in task):
        # A file's package is wrong, or it sets something at the top that is not a setting.
        raise_all(files.check(choices))
    raise_all(files.unnamed(task, choices))
    return launch, parsed, composed, task, files


def _without_plus(override: Override) -> str:
    key, text = override.key_or_group, override.input_line
    is_setting = "." in key and not override.is_hydra_override() and not LIST_PART.search(key)
    return text.lstrip("+") if is_setting else text


def _unresolved_directories(composed: DictConfig) -> list[NanolmError]:
    problems: list[NanolmError] = []
    for kind in ("run", "sweep"):
        try:
            OmegaConf.select(composed, f"hydra.{kind}.dir")
        except (OmegaConfBaseException, RecursionError) as error:
            raw = OmegaConf.to_container(composed.hydra[kind], resolve=False)["dir"]  # type: ignore[index, call-overload]
            problems.append(unresolved(f"hydra.{kind}.dir", raw, error))
    return problems


def _given_keys(parsed: Sequence[Override], files: YamlFiles | None = None) -> set[str]:
    """Return the keys of overrides, and those of the experiment in some files; None: its settings do not count."""
    keys = {override.key_or_group for override in parsed} - {*GLOBAL_GROUPS}
    if files is not None:
        groups, of_experiment = files.of_experiment()
        keys |= {*groups, *of_experiment}
    return keys


def _given(keys: Collection[str], config: Config) -> set[str]:
    """Return the settings that some keys give: a group gives all of its settings."""
    # A part of a list (scheduler.parts.0.gamma) sets the list.
    return {name for name in flat(config) if any(is_part(name, key) or is_part(key, name) for key in keys)}
