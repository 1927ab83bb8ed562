"""File names that identify a run directory, a sweep directory or a checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

CONFIG = "config.yaml"
BESIDE_CONFIG = ("summary.json", "metrics.jsonl", "tokenizer.json", ".lock")
SWEEP_JOURNAL = "study.journal"
SWEEP_LOCK = ".lock"
JOB_ERROR = "error.txt"
# What is left of a run whose config.yaml is gone, or of a job that failed before it was written.
REMAINS = (
    {"metrics.jsonl", "summary.json"},
    {"metrics.jsonl", "checkpoints"},
    {"checkpoints", "samples.jsonl"},
    {"samples.jsonl", "train.log"},
    {".lock", JOB_ERROR},
)


def is_job(names: Collection[str]) -> bool:
    """Whether these names in a folder below a sweep directory make it a job, started or failed before."""
    return JOB_ERROR in names or is_run_or_remains(names)


def is_run(names: Collection[str]) -> bool:
    """Whether these names in a folder make it a run directory, and not something else with a config.yaml."""
    return CONFIG in names and any(name in names for name in BESIDE_CONFIG)


def is_run_folder(folder: str | os.PathLike[str], names: Collection[str] | None = None) -> bool:
    """Whether a folder is a run directory, and not a sweep or something else with a config.yaml.

    Args:
        names: the names in the folder, of which only those of a run's files matter; None reads them.
    """
    names = names_in(folder) if names is None else set(names)
    if SWEEP_LOCK in names:
        # The lock of a run names a process; that of a sweep is empty.
        with contextlib.suppress(OSError):
            if os.stat(os.path.join(folder, SWEEP_LOCK)).st_size == 0:  # noqa: PTH116, PTH118
                names.remove(SWEEP_LOCK)
    return is_run(names)


def names_in(folder: str | os.PathLike[str]) -> set[str]:
    """The names in a folder; empty if it cannot be listed, which is reported when it is written to."""
    try:
        # Ten times as fast as Path.iterdir.
        return set(os.listdir(folder))  # noqa: PTH208
    except OSError:
        return set()


def is_run_or_remains(names: Collection[str]) -> bool:
    """Whether these names in a folder make it a run directory, including one that lost its config.yaml."""
    return is_run(names) or any(remains.issubset(names) for remains in REMAINS)


def checkpoint_step(name: str) -> int | None:
    """Return the step that a checkpoint's folder is named after, as in step-00000100; None for any other name."""
    number = name.removeprefix("step-")
    return int(number) if number != name and number.isdecimal() else None


def checkpoints_by_step(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """Return the checkpoints in a folder, damaged ones included, in order of their steps."""
    steps = {name: checkpoint_step(name) for name in names_in(folder)}
    return dict(sorted((step, Path(folder, name)) for name, step in steps.items() if step is not None))
