"""Folders that are excluded from training text: runs, sweeps and nanolm's cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from nanolm.data.download import cache_folder
from nanolm.run_layout import SWEEP_JOURNAL, SWEEP_LOCK, is_job, is_run_or_remains, names_in

# The subfolders of the cache, for a cache folder that also has other files.
CACHE_FOLDERS = ("compressors", "downloads", "streams")

Identity = tuple[int, int] | str


def file_identity(path: Path, status: os.stat_result) -> Identity:
    """Return a value that is equal for two names of the same file or folder."""
    # Some file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def cache_identities(root: Path) -> set[Identity]:
    """Return the identity of the cache folder, or those of its subfolders if `root` is the cache or inside it."""
    cache = Path(os.path.realpath(cache_folder()))
    is_inside = Path(os.path.realpath(root)).is_relative_to(cache)
    folders = [cache / name for name in CACHE_FOLDERS] if is_inside else [cache]
    identities = set()
    for folder in folders:
        # A cache folder that does not exist or is not accessible cannot be read as text either.
        with contextlib.suppress(OSError):
            identities.add(file_identity(folder, folder.stat()))
    return identities


def run_kind(folder: Path, names: Collection[str], folders: Iterable[str]) -> str | None:
    """Return "run directory" or "sweep" if a folder, with these names and subfolders in it, is one, else None."""
    if is_run_or_remains(names):
        return "run directory"
    has_jobs = SWEEP_LOCK in names and any(is_job(names_in(folder / name)) for name in folders)
    return "sweep" if SWEEP_JOURNAL in names or has_jobs else None


def excluded_kind(root: Path, path: Path) -> str | None:
    """Return what a file below a root folder belongs to: "run directory", "sweep", "cache folder" or None."""
    root, path = Path(os.path.realpath(root)), Path(os.path.realpath(path))
    excluded = cache_identities(root)
    for folder in path.parents:
        if not folder.is_relative_to(root):
            break
        names = names_in(folder)
        if kind := run_kind(folder, names, names):
            return kind
        if file_identity(folder, folder.stat()) in excluded:
            return "cache folder"
    return None
