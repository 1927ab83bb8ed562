"""The settings that runs differ in."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nanolm.analysis.collection import Run
from nanolm.config.roles import affects_results
from nanolm.errors import SettingsError, nearest


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that differ between runs, in the order of config.yaml, with the value of each run.

    None stands for null and for a setting that a run does not have. Settings that do not affect results are left out
    unless nothing else differs; dataset.path is kept if the texts differ. Runs without readable settings are ignored.
    """
    readable = [run.settings for run in runs if run.settings]
    differing = [key for key in _keys(readable) if _differs(_column(key, readable))]
    corpora = {run.summary.corpus for run in runs if run.settings}
    relevant = [key for key in differing if affects_results(key) or (key == "dataset.path" and len(corpora) > 1)]
    settings = [run.settings for run in runs]
    return {key: _column(key, settings) for key in relevant or differing}


def varying_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """As `differing_settings`, with a choice such as model=gpt in place of the settings that it determines.

    Settings of a group that have one value for each chosen option are replaced by the option, under the name of the
    group. An experiment replaces settings of every group likewise. The seed is never replaced. Two presets of a model
    differ in a dozen settings, for which one column is enough.
    """
    varying = differing_settings(runs)
    groups = list(dict.fromkeys(["experiment", *(key.split(".")[0] for key in varying if "." in key)]))
    # Runs without readable settings are ignored.
    is_readable = [bool(run.settings) for run in runs]
    for group in groups:
        chosen = [chosen_option(run, group) for run in runs]
        if not _differs(list(itertools.compress(chosen, is_readable))):
            continue
        in_group = [key for key in varying if key != "seed" and group in ("experiment", key.split(".")[0])]
        determined = [key for key in in_group if _is_determined_by(chosen, is_readable, varying[key])]
        if determined:
            at = list(varying).index(determined[0])
            items = [(key, values) for key, values in varying.items() if key not in determined]
            varying = dict([*items[:at], (group, chosen), *items[at:]])
    return varying


def values_of(name: str, runs: Sequence[Run]) -> tuple[str, list[Any]]:
    """Look up a setting by its key, by the end of its key (lr), or a config group by its name (model).

    Returns:
        The key or group, and its value in each run; None for a run that does not have it.

    Raises:
        SettingsError: no run has such a setting, or several keys have that end.
    """
    keys = _keys([run.settings for run in runs])
    groups = {key.split(".")[0] for key in keys if key.endswith(".name")}.union(*(run.summary.choices for run in runs))
    if name in groups and name not in keys:
        return name, [chosen_option(run, name) for run in runs]
    matching = [name] if name in keys else [key for key in keys if key.endswith(f".{name}")]
    # Of several keys, the one that differs between the runs is meant.
    differing = [key for key in matching if _differs([run.settings.get(key) for run in runs])]
    for found in (matching, differing):
        if len(found) == 1:
            return found[0], [run.settings.get(found[0]) for run in runs]
    if matching:
        raise SettingsError(f"{name!r} is ambiguous: {', '.join(matching)}", where=name, hint="write the whole key")
    raise SettingsError(f"no run has a setting {name!r}", where=name, hint=nearest(name, [*keys, *groups]))


def nearest_column(name: str, known: Iterable[str]) -> str:
    """As `errors.nearest`, but for `loss` all columns that contain it."""
    return nearest(name, [column for column in known if name in column] or known)


def chosen_option(run: Run, group: str) -> Any:
    """The option chosen in a group, or the name in its settings if the run was not made from a command line."""
    return run.summary.choices.get(group, run.settings.get(f"{group}.name"))


def _is_determined_by(chosen: Sequence[Any], is_readable: Sequence[bool], values: Sequence[Any]) -> bool:
    """Return whether each choice occurs with one value only."""
    values_by_choice: dict[str, set[str]] = {}
    for choice, value in itertools.compress(zip(chosen, values, strict=True), is_readable):
        values_by_choice.setdefault(repr(choice), set()).add(repr(value))
    return all(len(values) == 1 for values in values_by_choice.values())


def _keys(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all settings, in the order in which they occur."""
    keys: dict[str, Any] = {}
    for some in settings:
        keys.update(some)
    return list(keys)


def _column(key: str, settings: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The value of a setting in each run, None for those that do not have it."""
    try:
        return list(map(operator.itemgetter(key), settings))
    except KeyError:
        return [some.get(key) for some in settings]


def _differs(values: Sequence[Any]) -> bool:
    return bool(values) and values.count(values[0]) < len(values)
