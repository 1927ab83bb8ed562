"""Find every mistake in a command line that does not compose."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError

from nanolm.compose.hydra_api import CONFIG_NAME, choices_of, compose, without_hydra
from nanolm.compose.overrides import (
    LIST_PART,
    SWEEP_OPTIONS,
    expand,
    is_of_hydra,
    is_plain_value,
    known_keys,
    parse,
    with_values,
)
from nanolm.compose.yaml_files import YamlFiles
from nanolm.config.checks import check
from nanolm.config.composed import (
    missing_values,
    summarize_error,
    to_config,
    to_omegaconf,
    unresolved,
    unresolved_values,
)
from nanolm.config.fields import flatten
from nanolm.config.launch import LAUNCH_KEYS
from nanolm.config.run import Config
from nanolm.config.wrong_values import MISFITS, explain_value
from nanolm.errors import NanolmError, Problems, SettingsError, nearest
from nanolm.registry import GROUPS

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclasses.dataclass(frozen=True)
class Base:
    """The settings of a run that is resumed or forked, which replace the defaults.

    Attributes:
        groups: for which the experiment of a fork chooses an option; the run's settings of these groups are not used.
        keys: settings of the experiment.
    """

    config: Config
    groups: Collection[str] = ()
    keys: Sequence[str] = ()


def compose_over(texts: Sequence[str], base: Base | None) -> tuple[DictConfig, DictConfig]:
    """Compose the overrides of one run, over the settings of another run if there is one.

    Args:
        texts: overrides in Hydra's grammar.
        base: replaces the defaults, except in groups for which the overrides choose an option.

    Returns:
        Everything that Hydra composed, and nanolm's settings in it.
    """
    if base is None:
        composed = compose(texts)
        return composed, without_hydra(composed)
    parsed = parse(texts)
    values = [override for override in parsed if is_plain_value(override)]
    composed = compose([override.input_line for override in parsed if override not in values])
    task, saved = without_hydra(composed), to_omegaconf(base.config)
    of_experiment = dict(flatten(cast(dict[str, Any], OmegaConf.to_container(task, resolve=False))))
    # Private, but reading a node in a public way would resolve its interpolation.
    for name in set(saved).difference(base.groups, (override.key_or_group for override in parsed)):
        task[name] = saved._get_node(name)
    task = with_values(task, values, {key: of_experiment[key] for key in base.keys if key in of_experiment})
    # Such as hydra.run.dir=${model.name}.
    OmegaConf.set_struct(composed, False)
    for name in task:
        composed[name] = task._get_node(name)
    return composed, task


def lacking(options: Sequence[str], key: str, holders: Sequence[str], word: str) -> SettingsError:
    """The error for a setting that only some options of a sweep have."""
    return SettingsError(
        f"{' and '.join(options)} {'have' if len(options) > 1 else 'has'} no setting {key!r}, and "
        f"{' and '.join(holders)} of the same sweep {'have' if len(holders) > 1 else 'has'} it",
        where=word,
        hint="run one command for each of them, or leave the setting out",
    )


def diagnose(
    parsed: Sequence[Override],
    multirun: bool,
    files: YamlFiles,
    base: Base | None = None,
    found: Sequence[NanolmError] = (),
) -> list[NanolmError]:
    """Try every override by itself, choices of options first, and return every mistake.

    Args:
        parsed: the overrides.
        multirun: whether the command line is a sweep.
        files: the YAML files that the overrides choose.
        base: the settings of the run that is resumed or forked.
        found: problems of overrides that are not in `parsed`; they come first in the result.
    """
    from hydra.core.global_hydra import GlobalHydra

    loader = GlobalHydra.instance().config_loader()
    search = [override.input_line for override in parsed if override.key_or_group == "hydra.searchpath"]
    # Hydra does not list these groups if only the user's folder has options of them.
    groups = sorted({*loader.list_groups(""), "experiment", "sweep"} - {"schema", "hydra"})
    problems = list(found)
    sound: list[str] = []
    values: list[Override] = []
    for override in parsed:
        key = override.key_or_group
        if not multirun and override.is_sweep_override():
            hint = "add -m to run every combination, or quote the value: 'key=\"a,b\"'"
            problems.append(SettingsError(f"{override.input_line} gives several values", where=key, hint=hint))
        elif key in ("hydra/launcher", "hydra/sweeper") and (problem := _no_such_plugin(override, loader)):
            problems.append(problem)
        elif key in groups or key.startswith("hydra/"):
            options = _options(loader, key, search)
            # The last choice of a group counts.
            sound = [text for text in sound if text.split("=", 1)[0] != override.get_key_element()]
            for text in expand(override, multirun):
                choice = text.split("=", 1)[-1].strip("'\"")
                if choice in options or choice == "null":
                    sound.append(text)
                else:
                    hint = nearest(choice, options)
                    problems.append(SettingsError(f"no {key} is called {choice!r}", where=key, hint=hint))
        else:
            values.append(override)
    one_per_group = {text.split("=", 1)[0]: text for text in sound}
    chosen = [*search, *one_per_group.values()]
    try:
        composed, task = compose_over(chosen, base)
    except Exception as error:
        return [*problems, *_in_files(files, chosen, error)]
    # The keys that exist with each option of a sweep, to find those that one option does not have.
    known = known_keys(task)
    known_with = dict.fromkeys(one_per_group.values(), known)
    for text in sound:
        if text not in chosen:
            instead = [*(t for t in chosen if t.split("=", 1)[0] != text.split("=", 1)[0]), text]
            try:
                known_with[text] = known_keys(compose_over(instead, base)[1])
            except Exception as error:
                problems += _in_files(files, instead, error)
    # The settings of an unknown option are unknown.
    unchosen = {problem.where for problem in problems if problem.where in groups}
    hydras = {f"hydra.{name}" for name in known_keys(composed.hydra)}
    for override in values:
        key, word = override.key_or_group, override.input_line
        in_hydra = is_of_hydra(override)
        if LIST_PART.search(key):
            continue  # a part of a list that another override sets, without a meaning of its own
        if not in_hydra and (split := _options_without(key, known_with)):
            problems.append(lacking(split[0], key, split[1], word))
        elif key not in known and key.split(".")[0] in unchosen:
            continue
        elif not in_hydra and key not in known:
            problems.append(_no_setting(key, word, [*known, *groups, *SWEEP_OPTIONS, *LAUNCH_KEYS], base, files))
        elif override.is_add() and not isinstance(override.value(), dict | list) and not in_hydra:
            found_it = f"{word}: {key} exists already and needs no +"
            problems.append(SettingsError(found_it, where=word, hint=word.lstrip("+")))
        else:
            for text in expand(override, multirun):
                try:
                    if is_plain_value(override):
                        with_values(task, parse([text]))
                    else:
                        compose([*chosen, text])
                    sound.append(text)
                except Exception as error:
                    if in_hydra and key not in hydras:
                        problems.append(_no_hydra_setting(key, text, hydras))
                    else:
                        problems += _to_problems(error, text, composed if in_hydra else task)
    if problems:
        # Overrides that are right by themselves may be inconsistent; report that as well.
        fitting = {text.split("=", 1)[0]: text for text in (*search, *sound)}
        fitted = compose_over(list(fitting.values()), base)[1]
        wrong_keys = {override.key_or_group for override in values}
        missing = files.unnamed(fitted, _choices(chosen)) or missing_values(fitted)
        problems += [error for error in missing if error.where not in wrong_keys]
        problems += unresolved_values(fitted, files.place) or ([] if missing else check(to_config(fitted)))
    return problems


def _options_without(key: str, known_with: dict[str, set[str]]) -> tuple[list[str], list[str]] | None:
    """Return the options of a sweep without a setting and those of the same group with it, if there are both."""
    for group in {text.split("=")[0] for text in known_with}:
        options = [text for text in known_with if text.split("=")[0] == group]
        holders = [text for text in options if key in known_with[text]]
        if 0 < len(holders) < len(options):
            return sorted(set(options) - set(holders)), sorted(holders)
    return None


def _no_setting(key: str, word: str, known: Sequence[str], base: Base | None, files: YamlFiles) -> SettingsError:
    group = key.split(".")[0]
    having = files.options_with(group, key.partition(".")[2]) if group in GROUPS else []
    if having and base is not None:
        return not_in_run(key, getattr(base.config, group).name, having[0])
    elsewhere = f"the chosen {group} does not have it; it is a setting of {', '.join(having)}"
    return SettingsError(f"there is no setting {key!r}", where=word, hint=elsewhere if having else nearest(key, known))


def _no_hydra_setting(key: str, text: str, known: Iterable[str]) -> SettingsError:
    typed = {in_hydra: name for name, in_hydra in SWEEP_OPTIONS.items()}
    if key in typed:
        found, where = f"the chosen sweeper has no {typed[key]}", text.replace(key, typed[key])
        return SettingsError(found, where=where, hint="leave it out, or choose hydra/sweeper=grid")
    return SettingsError(f"there is no setting {key!r}", where=text, hint=nearest(key, known))


def not_in_run(key: str, option: str, other: str) -> SettingsError:
    """The error for a setting that the option of a run does not have, with another option that has it."""
    group = key.split(".")[0]
    return SettingsError(
        f"the run has no setting {key}: its {group} is {option}",
        where=key,
        hint=f"choose another {group} as well, as in {group}={other}",
    )


def _in_files(files: YamlFiles, chosen: Sequence[str], error: Exception) -> list[NanolmError]:
    """Return what is wrong with options that do not compose, with the file and the line."""
    if isinstance(error, NanolmError):
        return _to_problems(error, "")
    problems = files.check(_choices(chosen))
    if problems:
        return problems
    text = summarize_error(error)
    # Hydra names the option that it was reading.
    named = match[1].removesuffix(".yaml") if (match := re.search(r"In '([^']+)'", text)) else ""
    file = next((file for file in files.files.values() if f"{file.group}/{file.option}" == named), None)
    own = [str(file.path) for file in files.files.values() if not file.is_ours]
    where = str(file.path) if file else ", ".join(own or [text for text in chosen if "searchpath" not in text])
    return [SettingsError(re.sub(r"^In '[^']+': (\w+ raised while composing config: )?", "", text), where=where)]


def _choices(chosen: Sequence[str]) -> dict[str, str]:
    """Return the option of each group: the chosen one or the default."""
    defaults = choices_of(compose([]).hydra.runtime.choices)
    return defaults | {group: option for group, _, option in (text.partition("=") for text in chosen)}


def _no_such_plugin(override: Override, loader: Any) -> NanolmError | None:
    """Return the error for a launcher or a sweeper that is not installed, with the command that installs it."""
    key, name = override.key_or_group, str(override.value())
    options = _options(loader, key, [])
    if name in options:
        return None
    return SettingsError(f"no {key} is called {name!r}", where=f"{key}={name}", hint=nearest(name, options))


def _options(loader: Any, group: str, search: list[str]) -> list[str]:
    """Return the options of a group; those in its folders as folder/name."""
    from hydra.core.object_type import ObjectType

    options = list(loader.get_group_options(group, ObjectType.CONFIG, CONFIG_NAME, search))
    for folder in loader.get_group_options(group, ObjectType.GROUP, CONFIG_NAME, search):
        options += [f"{folder}/{name}" for name in _options(loader, f"{group}/{folder}", search)]
    return options


def _to_problems(error: Exception, text: str, task: DictConfig | None = None) -> list[NanolmError]:
    """Convert an error of a single override: nanolm's own are kept, Hydra's become an error about the override."""
    if isinstance(error, NanolmError):
        return error.problems if isinstance(error, Problems) else [error]
    if task is not None and any(isinstance(cause, MISFITS) for cause in (error, error.__cause__)):
        override = parse([text])[0]
        if explained := explain_value(task, override.key_or_group, override.value(), text):
            return [explained]
    if isinstance(error, GrammarParseError) or isinstance(error.__cause__, GrammarParseError):
        key, _, value = text.partition("=")
        return [unresolved(key.lstrip("+"), value, GrammarParseError())]
    return [SettingsError(summarize_error(error), where=text)]
