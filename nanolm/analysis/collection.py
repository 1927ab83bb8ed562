"""Many runs, read as plain files: which there are, what they say of themselves, and what tells them apart.

No torch, no OmegaConf and no plugin is needed for it, and nothing that is read is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from nanolm.analysis.edits import note_of_edits
from nanolm.config.interpolation import map_strings, unescape
from nanolm.config.roles import affects_results
from nanolm.errors import NanolmError, RunError, SettingsError, nearest, raise_all
from nanolm.files import user_path
from nanolm.run_layout import BESIDE_CONFIG, CONFIG, SWEEP_LOCK, is_run
from nanolm.runs.directory import RunDirectory, enclosing_run
from nanolm.runs.summary import Summary

# libyaml is some ten times as fast, where PyYAML was built with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its files have it.

    Attributes:
        path: its directory.
        name: the end of its path that no other run of the collection has.
        settings: config.yaml as {dotted key: plain value}; empty where it is damaged.
        summary: summary.json; empty where there is none or it is damaged.
        status: completed, running, interrupted, diverged, pruned or failed, as the summary says; `cut off` where it
            says running and no process writes there; `damaged` or `no summary` where it cannot say.
        faults: what is damaged, in words.
        notes: what a reader should know of a run that is not damaged, such as an edited config.yaml.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    summary: Summary
    status: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def choices(self) -> dict[str, str]:
        """The option chosen in each group."""
        return self.summary.choices


def find(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """The runs at and below each path: in the order of the paths, and below each by name, numbers by their value.

    Nothing inside a run is looked at for further runs, nor are folders whose name begins with a dot.

    Raises:
        RunError: a path is not there, or has no run at or below it; all such paths at once.
    """
    problems: list[NanolmError] = []
    found: dict[str, Path] = {}
    for path in map(user_path, paths):
        folders = list(_run_folders(path, set()))
        if not folders:
            what = f"there is no run in {path}" if path.is_dir() else f"there is no folder {path}"
            hint = "name a folder that `nanolm train` made, or one that holds such folders"
            problems.append(_remains_of_run(path) or RunError(what, where=str(path), hint=hint))
        for folder in folders:
            found.setdefault(os.path.realpath(folder), folder)
    raise_all(problems)
    folders = list(found.values())
    return [_read(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def _remains_of_run(path: Path) -> RunError | None:
    """The error for a folder that is a part of a run, or a run that lost its config.yaml; None for any other path."""
    run = RunDirectory(path)
    if enclosing_run(path) is not None or run.checkpoints.is_dir():
        try:
            run.require()
        except RunError as error:
            return error
    return None


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs, in their order in config.yaml, with each run's value.

    None stands for null and for a setting that a run does not have. What changes no number (quiet.py) is left
    out, unless nothing else differs or, of a text's path, unless the texts differ. A run without settings has no say.
    """
    readable = [run for run in runs if run.settings]
    keys = list(dict.fromkeys(key for run in readable for key in run.settings))
    apart = [key for key in keys if _differs(run.settings.get(key) for run in readable)]
    texts = {run.summary.corpus for run in readable}
    loud = [key for key in apart if affects_results(key) or (key == "dataset.path" and len(texts) > 1)]
    return {key: [run.settings.get(key) for run in runs] for key in loud or apart}


def told_apart(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """As `differing`, in fewer words: a choice such as model=gpt stands for all the settings that it decides.

    A group's settings that have one value wherever the same option was chosen are said by the option, under the
    group's name. An experiment stands for settings of every group in the same way. The seed is always there by itself.
    """
    apart = differing(runs)
    groups = list(dict.fromkeys(["experiment", *(key.split(".")[0] for key in apart if "." in key)]))
    for group in groups:
        chosen = [_choice(run, group) for run in runs]
        # A run without settings has no say.
        has_say = [bool(run.settings) for run in runs]
        if not _differs(itertools.compress(chosen, has_say)):
            continue
        is_said = functools.partial(_is_said_by, chosen, has_say)
        inside = [key for key in apart if key != "seed" and group in ("experiment", key.split(".")[0])]
        said = [key for key in inside if is_said(apart[key])]
        if said:
            at = list(apart).index(said[0])
            items = [(key, values) for key, values in apart.items() if key not in said]
            apart = dict([*items[:at], (group, chosen), *items[at:]])
    return apart


def values_of(name: str, runs: Sequence[Run]) -> tuple[str, list[Any]]:
    """A setting by its key, by the end of its key (lr), or a group by its name (model), and its value in each run.

    Returns:
        The key or the group, and None for each run that does not have it.

    Raises:
        SettingsError: no run has such a setting, or several have that end.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    groups = dict.fromkeys(["experiment"] * any("experiment" in run.choices for run in runs))
    groups |= dict.fromkeys(key.split(".")[0] for key in keys if key.endswith(".name"))
    groups |= dict.fromkeys(group for run in runs for group in run.choices)
    if name in keys:
        return name, [run.settings.get(name) for run in runs]
    if name in groups:
        return name, [_choice(run, name) for run in runs]
    ends = [key for key in keys if key.endswith(f".{name}")]
    # Of several, the one that tells the runs apart is meant.
    apart = [key for key in ends if _differs(run.settings.get(key) for run in runs)]
    for found in (ends, apart):
        if len(found) == 1:
            return found[0], [run.settings.get(found[0]) for run in runs]
    if ends:
        raise SettingsError(f"{name!r} may be any of {', '.join(ends)}", where=name, hint="write the whole key")
    raise SettingsError(f"no run has a setting {name!r}", where=name, hint=nearest(name, [*keys, *groups]))


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or as much of its end as makes it unlike the others."""
    keys = list(keys)
    return dict(zip(keys, _endings([key.split(".") for key in keys], "."), strict=True))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of those above it as make it unlike the others."""
    return _endings([list(Path(os.path.realpath(path)).parts) for path in paths], "/")


def plain_settings(path: Path) -> dict[str, Any]:
    """A config.yaml as {dotted key: plain value}; lists stay as they are.

    Raises:
        RunError: it cannot be read, or is not a table of settings.
    """
    try:
        raw = _read_yaml(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RunError(f"{path.name} is damaged: {reason}", where=str(path)) from error
    if not isinstance(raw, dict):
        raise RunError(f"{path.name} holds no settings", where=str(path))
    return dict(_flat(map_strings(unescape, raw)))


def note_of(path: Path) -> str:
    """How the config.yaml of a run was edited after training; an empty string if it was not, or cannot be read."""
    run = RunDirectory(path)
    with contextlib.suppress(RunError):
        return note_of_edits(run.checkpoints, plain_settings(run.config))
    return ""


def _read_yaml(content: bytes) -> Any:
    try:
        return yaml.load(content, Loader=LOADER)
    except yaml.YAMLError:
        # libyaml has no escapes for names of files that are not UTF-8.
        return yaml.load(content, Loader=yaml.SafeLoader)


def _read(path: Path, name: str) -> Run:
    run = RunDirectory(path)
    settings: dict[str, Any] = {}
    summary = Summary()
    faults = []
    try:
        settings = plain_settings(run.config)
    except RunError as error:
        faults.append(error.found)
    try:
        summary = run.read_summary()
    except RunError as error:
        faults.append(error.found)
    edited = note_of_edits(run.checkpoints, settings)
    return Run(path, name, settings, summary, _status(run, summary, faults), tuple(faults), (edited,) if edited else ())


def _status(run: RunDirectory, summary: Summary, faults: Sequence[str]) -> str:
    if faults:
        return "damaged"
    status = summary.status or "no summary"
    return "cut off" if status == "running" and not run.is_claimed() else status


def _run_folders(path: Path, seen: set[str]) -> Iterator[Path]:
    """Runs at and below a path. A folder that links lead to again is looked at once."""
    if (real := os.path.realpath(path)) in seen:
        return
    seen.add(real)
    if _is_run(path):
        yield path
        return
    try:
        below = [Path(entry.path) for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return
    for folder in sorted(below, key=lambda folder: _by_number(folder.name)):
        yield from _run_folders(folder, seen)


def _is_run(path: Path) -> bool:
    """Whether a config.yaml here is one of a run, and not of something else that has such a file."""
    names = [name for name in (CONFIG, *BESIDE_CONFIG) if (path / name).exists()]
    if names == [CONFIG, SWEEP_LOCK]:
        # The lock of a run names a process; that of a sweep is empty.
        with contextlib.suppress(OSError):
            return (path / SWEEP_LOCK).stat().st_size > 0
    return is_run(names)


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """Sorts lr=2 before lr=10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _flat(settings: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _choice(run: Run, group: str) -> Any:
    """The option chosen in a group, or the name in its settings where a run was not made from a command line."""
    return run.choices.get(group, run.settings.get(f"{group}.name"))


def _is_said_by(chosen: Sequence[Any], has_say: Sequence[bool], values: Sequence[Any]) -> bool:
    """Whether each choice goes with one value alone."""
    values_by_choice: dict[str, set[str]] = {}
    for choice, value in itertools.compress(zip(chosen, values, strict=True), has_say):
        values_by_choice.setdefault(repr(choice), set()).add(repr(value))
    return all(len(values) == 1 for values in values_by_choice.values())


def _differs(values: Iterable[Any]) -> bool:
    values = iter(values)
    first = next(values, None)
    return any(value != first for value in values)


def _endings(parts: Sequence[Sequence[str]], joined_by: str) -> list[str]:
    """The shortest ending of each sequence that no other one has."""
    longest = max(map(len, parts), default=0)
    seen = Counter(tuple(some[-n:]) for some in parts for n in range(1, longest + 1) if n <= len(some))
    endings = []
    for some in parts:
        n = next((n for n in range(1, len(some)) if seen[tuple(some[-n:])] == 1), len(some))
        endings.append(joined_by.join(some[-n:]).replace("//", "/"))
    return endings
