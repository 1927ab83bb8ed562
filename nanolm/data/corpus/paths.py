"""Search for the files of a path setting: a file, a folder or a glob."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import glob
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanolm.data.corpus.exclusions import Identity, cache_identities, file_identity, run_kind
from nanolm.data.corpus.reading import unreadable
from nanolm.errors import DataError
from nanolm.files import user_path
from nanolm.terminal import visible

# The remaining components of a glob, with which a folder is searched.
Rest = tuple[str, ...]

PLURALS = {
    "run directory": "run directories",
    "sweep": "sweeps",
    "cache folder": "cache folders",
    "FIFO, socket or device": "FIFOs, sockets or devices",
    "hidden file or folder": "hidden files and folders",
    "folder that the glob does not descend into": "folders that the glob does not descend into",
    "second name of a file that is read once": "second names of files that are read once",
}
# Paths of a kind that a message shows.
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a path setting.

    Attributes:
        files: the identity of each file, equal for two names of the same file, in reading order.
        skipped: one message per kind of file or folder below the path that is not read.
    """

    files: dict[Path, Identity]
    skipped: list[str]


def find_files(pattern: str, setting: str = "dataset.path") -> Found:
    """Find the files that a path setting names.

    A file that is named directly is always read. Below a folder, or among the matches of a glob, these are skipped: run
    directories, sweeps, nanolm's cache, hidden files, and anything that is neither a file nor a folder. Links to
    folders are followed, each folder is visited once, and a file with several names is read once.

    Args:
        pattern: the value of the setting.
        setting: its name, for error messages.

    Raises:
        DataError: there is no such file, something cannot be read, or everything is skipped.
    """
    if not pattern.strip():
        raise DataError(f"{setting} is empty", where=setting, hint="name a file, a folder or a glob")
    path = user_path(pattern)
    status = _status(path, setting)
    if status is not None and stat.S_ISREG(status.st_mode):
        return Found({path: file_identity(path, status)}, [])
    if status is not None and stat.S_ISDIR(status.st_mode):
        return _Search(path, ("**", "*"), setting, is_folder=True).found(pattern)
    if status is not None:
        raise DataError(
            "this is a FIFO, a socket or a device, which can be read only once",
            where=f"{setting}, {path}",
            hint="write the text to a file first",
        )
    root, rest = _split_glob(path)
    if not rest:
        raise _nothing_there(pattern, setting)
    return _Search(root, rest, setting, is_folder=False).found(pattern)


class _Search:
    """Search below a folder for the files that match a glob.

    Links are followed last, so that a file that can be reached without a link is found under its own name.
    """

    def __init__(self, root: Path, rest: Rest, setting: str, is_folder: bool) -> None:
        self._setting, self._root, self._is_folder = setting, root, is_folder
        self._excluded = cache_identities(root)
        # The best name of each file: (is_linked, path), lowest first.
        self._found: dict[Identity, tuple[bool, Path]] = {}
        self._skipped: dict[str, list[Path]] = collections.defaultdict(list)
        self._pending = [(root, frozenset([rest]), False)]
        self._links: collections.deque[tuple[Path, frozenset[Rest], bool]] = collections.deque()
        self._visited: set[tuple[Identity, frozenset[Rest]]] = set()

    def found(self, pattern: str) -> Found:
        """Search, and sort the files.

        Raises:
            DataError: as `find_files`.
        """
        while self._pending or self._links:
            self._visit(*(self._pending.pop() if self._pending else self._links.popleft()))
        skipped = [_message(kind, paths) for kind, paths in self._skipped.items() if paths]
        if not self._found:
            raise self._nothing_left(pattern, skipped)
        named = {path: identity for identity, (_, path) in self._found.items()}
        return Found({path: named[path] for path in sorted(named, key=None if self._is_folder else str)}, skipped)

    def _visit(self, folder: Path, rests: frozenset[Rest], is_linked: bool) -> None:
        try:
            identity = file_identity(folder, folder.stat())
            if (identity, rests) in self._visited:
                return
            self._visited.add((identity, rests))
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            if folder == self._root and isinstance(error, FileNotFoundError | NotADirectoryError):
                return
            raise unreadable(folder, error, f"{self._setting}, {folder}") from error
        if identity in self._excluded:
            self._skipped["cache folder"].append(folder)
            return
        kind = run_kind(folder, {e.name for e in entries}, (e.name for e in entries if e.is_dir()))
        # A sweep may be written into a folder of text; its jobs below are skipped one by one.
        if kind == "run directory" or (kind and folder != self._root):
            self._skipped[kind].append(folder)
            return
        for entry in entries:
            self._consider(folder / entry.name, entry, rests, is_linked or entry.is_symlink())

    def _consider(self, path: Path, entry: os.DirEntry[str], rests: frozenset[Rest], is_linked: bool) -> None:
        is_match, below = _step(entry.name, rests)
        if not is_match and not below:
            if self._is_folder:
                self._skipped["hidden file or folder"].append(path)
            return
        try:
            if not is_match and not entry.is_dir():
                return
            status = path.stat()
        except OSError as error:
            if is_match:
                raise unreadable(path, error, f"{self._setting}, {path}") from error
            return
        if stat.S_ISDIR(status.st_mode):
            if below:
                (self._links if entry.is_symlink() else self._pending).append((path, below, is_linked))
            else:
                self._skipped["folder that the glob does not descend into"].append(path)
        elif is_match and not stat.S_ISREG(status.st_mode):
            self._skipped["FIFO, socket or device"].append(path)
        elif is_match:
            identity, name = file_identity(path, status), (is_linked, path)
            known = self._found.setdefault(identity, name)
            if known[1] != path:
                self._found[identity] = min(known, name)
                self._skipped["second name of a file that is read once"].append(max(known, name)[1])

    def _nothing_left(self, pattern: str, skipped: list[str]) -> DataError:
        if skipped:
            return DataError(
                f"everything in {pattern!r} is skipped",
                where="; ".join([f"{self._setting}, relative to {Path.cwd()}", *skipped]),
                hint="a file that is named directly is always read, as in dataset.path=RUN/samples.jsonl",
            )
        if self._is_folder:
            hint = f"set {self._setting} to a folder of texts"
            return DataError("the folder has no files", where=str(self._root), hint=hint)
        return _nothing_there(pattern, self._setting)


def _split_glob(path: Path) -> tuple[Path, Rest]:
    """Split a glob into the folder to search and the components from the first wildcard on."""
    root, parts = Path(path.anchor), list(path.parts[1:] if path.anchor else path.parts)
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(root / parts[0])):
        root /= parts.pop(0)
    if parts and parts[-1] == "**":
        parts.append("*")
    return root, tuple(parts)


def _step(name: str, rests: Iterable[Rest]) -> tuple[bool, frozenset[Rest]]:
    """Match one name in a folder against the remaining components of globs.

    Returns:
        Whether the name matches completely, and the components to search it with if it is a folder.
    """
    is_match, below = False, set()
    for rest in rests:
        for first, *others in _skip_recursive(rest):
            if first == "**":
                if not name.startswith("."):
                    below.add((first, *others))
            elif fnmatch.fnmatch(name, first) and (not name.startswith(".") or first.startswith(".")):
                if others:
                    below.add(tuple(others))
                else:
                    is_match = True
    return is_match, frozenset(below)


def _skip_recursive(rest: Rest) -> Iterator[Rest]:
    """Yield the components, and those after a leading `**`, as it also matches no folder."""
    yield rest
    while rest[0] == "**" and len(rest) > 1:
        rest = rest[1:]
        yield rest


def _status(path: Path, setting: str) -> os.stat_result | None:
    """Return the status of a path, or None if nothing has that name."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return None
        found = "this is a dangling link"
    except OSError as error:
        found = f"this cannot be read: {error.strerror}"
    except ValueError as error:
        found = f"this is not a path: {error}"
    raise DataError(found, where=f"{setting}, {path}", hint="name an existing file or folder")


def _nothing_there(pattern: str, setting: str) -> DataError:
    return DataError(
        f"there is no file or folder matching {pattern!r}",
        where=f"{setting}, relative to {Path.cwd()}",
        hint="name an existing file or folder, or a glob such as 'notes/**/*.md'",
    )


def _message(kind: str, paths: list[Path]) -> str:
    shown = ", ".join(visible(str(path)) for path in sorted(paths)[:SHOWN])
    more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
    return f"{len(paths):,} {kind if len(paths) == 1 else PLURALS[kind]} ({shown}{more})"
