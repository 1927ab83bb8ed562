"""Run directories read as plain files.

Neither torch nor OmegaConf nor a plugin is imported, and nothing that is read is executed. Therefore hundreds of runs
are read quickly, and runs of a plugin can be read without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanolm.analysis.edits import note_of_edits
from nanolm.analysis.names import unique_endings
from nanolm.config.fields import flatten
from nanolm.config.interpolation import map_strings, unescape
from nanolm.errors import NanolmError, RunError, raise_all
from nanolm.files import user_path
from nanolm.plain_yaml import load_plain_yaml
from nanolm.registry import GROUPS
from nanolm.run_layout import BESIDE_CONFIG, CONFIG, is_run_folder
from nanolm.runs.directory import NAMES, RunDirectory, enclosing_run
from nanolm.runs.metrics import check_rows
from nanolm.runs.summary import Summary, read_summary
from nanolm.untrusted import StrPath, damaged, folder_of, read_inside, read_yaml
from nanolm.wording import shorten

# The status of a run with a file that cannot be read.
DAMAGED = "damaged"
# Settings that are used without the schema, with their types.
TYPES: dict[str, tuple[type, str]] = {
    **{f"{group}.name": (str, "text") for group in GROUPS},
    **{f"logger.{name}": (str, "text") for name in ("project", "entity", "group")},
    "logger.tags": (list, "a list"),
    "plugins": (list, "a list"),
    "trainer.max_steps": (int, "a whole number"),
}
# The beginning of a setting of a group in config.yaml.
CHILD = re.compile(rb"^(?=  [^ \n])", re.MULTILINE)
DIGITS = re.compile(r"(\d+)")
KEY = re.compile(rb" *(\w+):[ \n]")
MAX_BYTES_BY_PARTS = 20_000
RUN_FILES = {CONFIG, *BESIDE_CONFIG}
# Folders that are searched for runs below one path.
MAX_FOLDERS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run directory.

    Attributes:
        name: the shortest ending of the path that is unique in the collection.
        settings: config.yaml as {dotted key: plain value}; empty if it is damaged.
        summary: summary.json; empty if it is missing or damaged.
        status: completed, stopped_early, running, interrupted, diverged, pruned or failed, as in the summary;
            `unfinished` if the summary says running and no process writes to the run; `damaged` or `no summary` if it
            is unknown.
        faults: what is damaged.
        notes: other remarks, such as an edited config.yaml.
    """

    path: Path
    name: str
    settings: dict[str, Any]
    summary: Summary
    status: str
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def validation_text(self) -> str | None:
        """Its validation text, identified by its corpus and split settings; None if its files do not say."""
        if not self.summary.corpus or not self.settings:
            return None
        split = {key: self.settings.get(f"dataset.{key}") for key in ("val_fraction", "test_fraction", "split_by")}
        if split["split_by"] != "fraction":
            split["split_seed"] = self.settings.get("dataset.split_seed")
        return repr([self.summary.corpus, split])

    def with_fault(self, fault: str) -> Run:
        """Return the run as damaged, with one more description of what is damaged."""
        return dataclasses.replace(self, status=DAMAGED, faults=tuple(dict.fromkeys((*self.faults, fault))))


def find(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Find the runs at and below each path, sorted by name with numbers by value.

    Runs are not searched for inside of runs, nor in folders whose name starts with a dot.

    Raises:
        RunError: a path does not exist or contains no run; all such paths are reported.
    """
    problems: list[NanolmError] = []
    found: dict[str, str] = {}
    for path in map(user_path, paths):
        folders = dict(_run_folders(str(path)))
        if not folders:
            problems.append(_no_run_error(path))
        for real, folder in folders.items():
            found.setdefault(real, folder)
    raise_all(problems)
    parts = [(os.sep, *filter(None, real.split(os.sep))) for real in found]  # noqa: PTH206
    names = unique_endings(parts, "/")
    return [_read(folder, name) for folder, name in zip(found.values(), names, strict=True)]


def plain_settings(path: StrPath) -> dict[str, Any]:
    """Read a config.yaml as {dotted key: plain value}; lists are kept as values.

    Raises:
        RunError: the file cannot be read, is damaged, or contains no mapping.
    """
    try:
        settings = _settings_by_parts(read_inside(path, folder_of(path)))
    except (OSError, ValueError):
        settings = dict(flatten(map_strings(unescape, read_yaml(path, folder_of(path)))))
    for key, (kind, name) in TYPES.items():
        if (value := settings.get(key)) is not None and not isinstance(value, kind):
            raise damaged(path, f"{key} is {shorten(repr(value))}, and must be {name}")
    return settings


def _settings_by_parts(content: bytes) -> dict[str, Any]:
    """Parse each part of a config.yaml on its own: the runs of a sweep have most parts in common, which are cached.

    Raises:
        ValueError: the text is not in the form that nanolm writes, and has to be parsed as a whole.
    """
    # Other characters may end a line, and a large file is parsed faster as a whole.
    if not content.isascii() or b"\r" in content or b"\0" in content or len(content) > MAX_BYTES_BY_PARTS:
        raise ValueError("it is not a usual file")
    # The lines of a group begin with a space, except for the first.
    groups = content.removesuffix(b"\n").replace(b"\n ", b"\0 ").split(b"\n")
    parsed = dict(map(_parse_group, groups))
    if len(parsed) < len(groups):
        raise ValueError("it has a key twice")
    settings: dict[str, Any] = {}
    for group in parsed.values():
        settings.update(group)
    return settings


@functools.lru_cache(maxsize=10_000)
def _parse_group(text: bytes) -> tuple[bytes, dict[str, Any]]:
    """Parse a group of config.yaml, whose lines are joined by NUL. Return its name and its settings by dotted key."""
    text = text.replace(b"\0", b"\n") + b"\n"
    if text[:1] == b" " or not (match := KEY.match(text)):
        raise ValueError("it is not a plain key")
    head, _, children = text.partition(b"\n")
    if not children or head[-1:] != b":" or head.count(b":") > 1:
        return match[1], dict(_parse_part("", text))
    prefix = f"{head[:-1].decode()}."
    return match[1], dict(pair for child in _children(children) for pair in _parse_part(prefix, child))


def _children(text: bytes) -> list[bytes]:
    before, *parts = CHILD.split(text)
    keys = [match[1] for part in parts if (match := KEY.match(part))]
    if before or len(set(keys)) < len(parts):
        raise ValueError("it is not a mapping of different plain keys")
    return parts


@functools.lru_cache(maxsize=10_000)
def _parse_part(prefix: str, text: bytes) -> list[tuple[str, Any]]:
    return [(f"{prefix}{key}", value) for key, value in flatten(map_strings(unescape, load_plain_yaml(text)))]


def note_of(path: Path) -> str:
    """Describe how the config.yaml of a run was edited after training; empty if it was not, or cannot be read."""
    run = RunDirectory(path)
    with contextlib.suppress(RunError):
        return note_of_edits(run.checkpoints, plain_settings(run.config))
    return ""


def _no_run_error(path: Path) -> RunError:
    run = RunDirectory(path)
    # A part of a run, or a run without config.yaml.
    if enclosing_run(path) is not None or run.checkpoints.is_dir():
        try:
            run.require()
        except RunError as error:
            return error
    return RunError(
        f"there is no run in {path}" if path.is_dir() else f"there is no folder {path}",
        where=str(path),
        hint="name a run directory, or a folder that contains run directories",
    )


def _read(folder: str, name: str) -> Run:
    settings: dict[str, Any] = {}
    summary, faults = Summary(), []
    try:
        settings = plain_settings(f"{folder}/{NAMES['config']}")
    except RunError as error:
        faults.append(error.found)
    try:
        summary = read_summary(f"{folder}/{NAMES['summary']}")
    except RunError as error:
        faults.append(error.found)
    try:
        check_rows(f"{folder}/{NAMES['metrics']}")
    except RunError as error:
        faults.append(error.found)
    status = DAMAGED if faults else summary.status or "no summary"
    path = Path(folder)
    if status == "running" and not RunDirectory(path).is_claimed():
        status = "unfinished"
    edited = note_of_edits(f"{folder}/{NAMES['checkpoints']}", settings)
    return Run(path, name, settings, summary, status, tuple(faults), (edited,) if edited else ())


def _run_folders(path: str) -> Iterator[tuple[str, str]]:
    """Yield runs at and below a path, entering each folder once even if links form a cycle.

    Each is yielded as its real path and its path below the given one.

    Folders that cannot be listed are skipped.

    Raises:
        RunError: there are more than MAX_FOLDERS folders.
    """
    seen: set[tuple[int, int]] = set()
    # Strings: a folder may have many subfolders, and a Path is slow to make.
    waiting = [(os.path.realpath(path), path)]
    while waiting:
        real, folder = waiting.pop()
        with contextlib.suppress(OSError):
            status = os.stat(folder)  # noqa: PTH116
            if (identity := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(identity)
            names, below = _list_folder(folder, MAX_FOLDERS - len(seen) - len(waiting))
            if names and is_run_folder(folder, names):
                yield real, folder
            else:
                for name in sorted(below, key=_natural_order, reverse=True):
                    path = name if folder == os.curdir else os.path.join(folder, name)  # noqa: PTH118
                    its_real = os.path.realpath(path) if below[name] else os.path.join(real, name)  # noqa: PTH118
                    waiting.append((its_real, path))


def _list_folder(folder: str, max_folders: int) -> tuple[set[str], dict[str, bool]]:
    """Return the names of a run's files in a folder, and its subfolders that are not hidden: whether each is a link."""
    names, below = set(), {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in RUN_FILES:
                names.add(entry.name)
            # A link that leads to itself raises an error.
            with contextlib.suppress(OSError):
                if not entry.name.startswith(".") and entry.is_dir():
                    below[entry.name] = entry.is_symlink()
            if len(below) > max_folders:
                raise RunError(
                    f"there are more than {MAX_FOLDERS:,} folders to search for runs",
                    where=folder,
                    hint="name a run directory, or a folder with fewer folders",
                )
    return names, below


def _natural_order(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts lr=2 before lr=10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in DIGITS.split(name) if part]
