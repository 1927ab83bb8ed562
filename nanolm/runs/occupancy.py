"""Decide whether training may write into a folder: it is empty, a run, or what a killed start left."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm.config.fields import flat
from nanolm.config.run import Config
from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.files import user_path
from nanolm.run_layout import is_run
from nanolm.runs.directory import RunDirectory, enclosing_run
from nanolm.runs.records import from_json
from nanolm.runs.summary import Summary

# Why no picture or report is written among the files of a run.
OVERWRITES = "its own files are not replaced"

# Entries of a folder that an error message names.
SHOWN_ENTRIES = 5

# What a killed write or a killed dry run leaves, such as .summary.json.123.tmp.
TEMPORARY = re.compile(r"\.(config\.yaml|summary\.json|tokenizer\.json)\..+\.tmp|\.dry-run-\w+")

# How every line of train.log begins.
LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")

HYDRA_FILES = {"config.yaml", "hydra.yaml", "overrides.yaml"}


def require_startable(run: RunDirectory, also: frozenset[str] = frozenset()) -> None:
    """Refuse a folder that is neither empty nor a run. Nothing is changed.

    What a start leaves that was killed before it wrote config.yaml does not count, so that the same command works
    again. It is recognised by its content.

    Args:
        run: the folder; it need not exist.
        also: names of further files that may be there.

    Raises:
        RunError: with some of the files that are in the folder, or the run that the folder is a part of.
    """
    require_outside_runs(run.path, "where a run keeps its own files, no other one can be")
    foreign = [name for name in _foreign_entries(run) if name not in also]
    if not foreign:
        return
    more = f" and {len(foreign) - SHOWN_ENTRIES} more" if len(foreign) > SHOWN_ENTRIES else ""
    raise RunError(
        f"the folder is neither empty nor a run: it holds {', '.join(foreign[:SHOWN_ENTRIES])}{more}",
        where=str(run.path.absolute()),
        hint="name a new or an empty folder, as in hydra.run.dir=outputs/my_run; training would write its own files "
        "beside or over these",
    )


def require_outside_runs(path: Path, reason: str) -> None:
    """Refuse a path that is a part of a run, such as its checkpoints or one of its files, through links if need be.

    Args:
        reason: why, for the message.

    Raises:
        RunError: with the run.
    """
    enclosing = enclosing_run(Path(os.path.realpath(path)))
    # A folder with a config.yaml of something else may have any folders.
    if enclosing is not None and _is_run(enclosing):
        raise RunError(
            f"{path} is a part of the run {enclosing}: {reason}",
            where=str(path),
            hint="choose a path outside of it",
        )


def require_no_run(directory: Path) -> None:
    """Refuse a sweep directory that is a run, or a part of one: the runs in it would not be found there.

    Raises:
        RunError: with the run.
    """
    require_outside_runs(directory, "the runs of a sweep would not be found there")
    if _is_run(directory):
        raise RunError(
            f"{directory} is a run, and the runs of a sweep would not be found in it",
            where=str(directory),
            hint="name another folder, as in hydra.sweep.dir=outputs/my_sweep",
        )


def require_nothing_overwritten(run: RunDirectory) -> None:
    """Refuse a folder that is no run and has files which a run would write, and which no run wrote.

    Raises:
        RunError: with those files.
    """
    own = {path.name for path in run.written}
    if taken := [name for name in _foreign_entries(run) if name in own]:
        raise RunError(
            f"the folder is no run, and training would overwrite its {', '.join(taken)}",
            where=str(run.path.absolute()),
            hint="name a new or an empty folder",
        )


def _foreign_entries(run: RunDirectory) -> list[str]:
    """The names in a folder that no run left there; none of a run."""
    names = _entries(run.path)
    if "config.yaml" in names or is_without_config(run):
        return []
    foreign = sorted(name for name in names if not _is_leftover(run.path / name))
    # Another process may have begun a run here since the folder was listed.
    return [] if run.exists() else foreign


def is_without_config(run: RunDirectory) -> bool:
    """Whether a folder holds a run whose config.yaml is gone: it has checkpoints, or its summary counts steps."""
    if run.exists():
        return False
    if any(path.name.removeprefix("step-").isdigit() for path in run.checkpoints.glob("step-*/")):
        return True
    summary = from_json(Summary, _json_object(run.summary))
    return _is_own(summary) and bool(summary.step or summary.has_checkpoint)


def require_inputs_outside(config: Config, run: RunDirectory) -> None:
    """Refuse settings that read a file which the run itself would write.

    Raises:
        SettingsError: with each such setting.
    """
    # Path.resolve() raises RuntimeError for links that lead in a circle.
    written = [Path(os.path.realpath(path)) for path in run.written]
    problems: list[NanolmError] = []
    for key, value in flat(config).items():
        if not key.endswith("path") or not isinstance(value, str) or not value.strip():
            continue
        path = Path(os.path.realpath(user_path(value)))
        if any(path == file or file in path.parents for file in written):
            problems.append(
                SettingsError(
                    f"{key}={value} is a file that the run directory {run.path} would overwrite",
                    where=key,
                    hint="choose another folder with hydra.run.dir=, or move the file",
                )
            )
    raise_all(problems)


def _is_run(folder: Path) -> bool:
    # A sweep has a lock too, and may lie beside a config.yaml of something else.
    return is_run(_entries(folder) - {".lock"})


def _entries(folder: Path) -> set[str]:
    """The names in a folder; none where it cannot be listed, which is reported when it is written to."""
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError:
        return set()


def _is_leftover(path: Path) -> bool:
    """Whether a file is one that a start writes before config.yaml, or that holds nothing."""
    if path.is_symlink():
        return False
    if path.name == ".hydra":
        return _entries(path) <= HYDRA_FILES and path.is_dir()
    if TEMPORARY.fullmatch(path.name):
        return True
    recognise = RECOGNISED.get(path.name)
    if recognise is None or not path.is_file():
        return False
    with contextlib.suppress(OSError):
        return recognise(path)
    return False


def _is_empty(path: Path) -> bool:
    return path.stat().st_size == 0


def _is_lock(path: Path) -> bool:
    return path.read_bytes()[:8] in (b"", b"process ")


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return _is_empty(path) or bool(LOG_LINE.match(file.read(20)))


def _is_tokenizer(path: Path) -> bool:
    state = _json_object(path)
    # A tokenizer.json of the Hugging Face library has no name.
    return _is_empty(path) or isinstance(state.get("name"), str)


def _is_own(summary: Summary) -> bool:
    return summary.identity is not None and summary.status is not None


RECOGNISED: dict[str, Callable[[Path], bool]] = {
    ".lock": _is_lock,
    "metrics.jsonl": _is_empty,
    "samples.jsonl": _is_empty,
    "summary.json": lambda path: _is_empty(path) or _is_own(from_json(Summary, _json_object(path))),
    "tokenizer.json": _is_tokenizer,
    "train.log": _is_log,
}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
