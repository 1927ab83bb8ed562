"""Folders that are not training text although they lie below it: runs, sweeps and nanolm's cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from nanolm.data.download import cache_folder
from nanolm.run_layout import SWEEP_JOURNAL, SWEEP_LOCK, is_job, is_run_or_remains

# The folders in the cache, for a cache folder that holds other files too.
CACHE_FOLDERS = ("compressors", "downloads", "streams")

Identity = tuple[int, int] | str


def identity_of(path: Path, status: os.stat_result) -> Identity:
    """What two names of the same file or folder have in common."""
    # Some file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def cache_identities(root: Path) -> set[Identity]:
    """The cache folder, or its subfolders where `root` is the cache folder or lies in it."""
    cache = Path(os.path.realpath(cache_folder()))
    if Path(os.path.realpath(root)).is_relative_to(cache):
        folders = [cache / name for name in CACHE_FOLDERS]
    else:
        folders = [cache]
    identities = set()
    for folder in folders:
        # A cache that is not there, or that this user cannot reach, cannot be read as text either.
        with contextlib.suppress(OSError):
            identities.add(identity_of(folder, folder.stat()))
    return identities


def kind_of_run(folder: Path, names: Collection[str], folders: Iterable[str]) -> str | None:
    """Whether a folder is a run or a sweep.

    Args:
        folder: the folder.
        names: the names in it.
        folders: those names that are folders.

    Returns:
        "run directory", "sweep", or None.
    """
    if is_run_or_remains(names):
        return "run directory"
    if SWEEP_JOURNAL in names:
        return "sweep"
    if SWEEP_LOCK in names and any(is_job(_names(folder / name)) for name in folders):
        return "sweep"
    return None


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def kind_below(root: Path, path: Path) -> str | None:
    """What a file belongs to besides the folder it was found below: a run directory, a sweep, the cache, or None."""
    root, path = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    excluded = cache_identities(root)
    for folder in path.parents if path.is_relative_to(root) else ():
        names = _names(folder)
        if kind := kind_of_run(folder, names, names):
            return kind
        if identity_of(folder, folder.stat()) in excluded:
            return "cache folder"
        if folder == root:
            return None
    return None
