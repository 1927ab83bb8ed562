"""Decide whether training may write into a folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from nanolm.config.fields import flat
from nanolm.config.run import Config
from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.files import is_replacement, user_path
from nanolm.json_text import parse_object
from nanolm.run_layout import checkpoints_by_step, is_run_folder, names_in
from nanolm.runs.directory import RunDirectory, enclosing_run
from nanolm.runs.summary import Summary, read_summary

# Number of files that an error message names.
SHOWN_ENTRIES = 5

# What a killed dry run leaves.
DRY_RUN = re.compile(r"\.dry-run-\w+")

# The start of every line of train.log.
LOG_LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")

HYDRA_FILES = {"config.yaml", "hydra.yaml", "overrides.yaml"}


def require_startable(run: RunDirectory, also: frozenset[str] = frozenset()) -> None:
    """Require that a folder is empty or a run.

    Files left by a start that was killed before it wrote config.yaml are ignored, so that the same command works again.
    They are recognised by their content.

    Args:
        run: the folder; it need not exist.
        also: names of other files that are allowed.

    Raises:
        RunError: naming some files in the folder, or the run that the folder is a part of.
    """
    require_outside_runs(run.path, "a run cannot be inside of another run")
    foreign = [name for name in _foreign_entries(run) if name not in also]
    if not foreign:
        return
    more = f" and {len(foreign) - SHOWN_ENTRIES} more" if len(foreign) > SHOWN_ENTRIES else ""
    raise RunError(
        f"the folder is neither empty nor a run: it holds {', '.join(foreign[:SHOWN_ENTRIES])}{more}",
        where=str(run.path.absolute()),
        hint="name a new or empty folder, as in hydra.run.dir=outputs/my_run; training could overwrite these files",
    )


def require_outside_runs(path: Path, reason: str) -> None:
    """Require that a path, with links resolved, is not a part of a run, such as one of its files.

    Args:
        reason: the reason, for the message.

    Raises:
        RunError: naming the run.
    """
    enclosing = enclosing_run(Path(os.path.realpath(path)))
    # A config.yaml may belong to something else.
    if enclosing is not None and is_run_folder(enclosing):
        raise RunError(
            f"{path} is a part of the run {enclosing}: {reason}",
            where=str(path),
            hint="choose a path outside of it",
        )


def require_no_run(directory: Path) -> None:
    """Require that a sweep directory is neither a run nor a part of one, where its runs would not be found.

    Raises:
        RunError: naming the run.
    """
    require_outside_runs(directory, "the runs of a sweep would not be found there")
    if is_run_folder(directory):
        raise RunError(
            f"{directory} is a run: the runs of a sweep would not be found in it",
            where=str(directory),
            hint="name another folder, as in hydra.sweep.dir=outputs/my_sweep",
        )


def require_nothing_overwritten(run: RunDirectory) -> None:
    """Require that a folder that is not a run has no files that training would overwrite.

    Raises:
        RunError: naming those files.
    """
    own = {path.name for path in run.written}
    if taken := [name for name in _foreign_entries(run) if name in own]:
        raise RunError(
            f"the folder is not a run, and training would overwrite its {', '.join(taken)}",
            where=str(run.path.absolute()),
            hint="name a new or empty folder",
        )


def _foreign_entries(run: RunDirectory) -> list[str]:
    """The names in a folder that do not come from a run; empty for a run."""
    names = names_in(run.path)
    if "config.yaml" in names or is_without_config(run):
        return []
    foreign = sorted(name for name in names if not _is_leftover(run.path / name))
    # Another process may have started a run here after the folder was listed.
    return [] if run.exists() else foreign


def is_without_config(run: RunDirectory) -> bool:
    """Return whether a folder is a run without config.yaml: it has checkpoints, or a summary with steps."""
    if run.exists():
        return False
    if checkpoints_by_step(run.checkpoints):
        return True
    summary = _own_summary(run.summary)
    return summary is not None and bool(summary.step or summary.has_checkpoint)


def require_inputs_outside(config: Config, run: RunDirectory) -> None:
    """Require that no setting names an input file that the run would write.

    Raises:
        SettingsError: for each such setting.
    """
    # Path.resolve() raises RuntimeError for cyclic links.
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


def _is_leftover(path: Path) -> bool:
    """Return whether a file is empty or written by a start before config.yaml."""
    if path.is_symlink():
        return False
    if path.name == ".hydra":
        return names_in(path) <= HYDRA_FILES and path.is_dir()
    if is_replacement(path) or DRY_RUN.fullmatch(path.name):
        return True
    if path.name not in RECOGNISED or not path.is_file():
        return False
    recognise = RECOGNISED[path.name]
    with contextlib.suppress(OSError, ValueError):
        return path.stat().st_size == 0 or (recognise is not None and recognise(path))
    return False


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return LOG_LINE.match(file.read(20)) is not None


def _is_base(path: Path) -> bool:
    """Return whether a file is the frozen base that the summary beside it names."""
    summary = _own_summary(path.with_name("summary.json"))
    if summary is None or summary.base is None:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == summary.base


def _own_summary(path: Path) -> Summary | None:
    """The summary in a file; None if nanolm did not write it."""
    with contextlib.suppress(RunError):
        summary = read_summary(path)
        if summary.identity is not None and summary.status is not None:
            return summary
    return None


# Files that a start writes before config.yaml, and whether such a file is of nanolm if it is not empty.
RECOGNISED: dict[str, Callable[[Path], bool] | None] = {
    **dict.fromkeys((".lock", ".lock.soft", ".lock.soft.next"), lambda path: path.read_bytes().startswith(b"process ")),
    "base.safetensors": _is_base,
    "metrics.jsonl": None,
    "samples.jsonl": None,
    "summary.json": lambda path: _own_summary(path) is not None,
    # A tokenizer.json of Hugging Face tokenizers has no name.
    "tokenizer.json": lambda path: isinstance(parse_object(path.read_bytes()).get("name"), str),
    "train.log": _is_log,
}
