"""The files that a path setting names: a file, a folder or a glob."""

from __future__ import annotations

import collections
import dataclasses
import fnmatch
import functools
import glob
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nanolm.data.corpus.exclusions import Identity, cache_identities, identity_of, kind_of_run
from nanolm.errors import DataError
from nanolm.files import user_path

# The rest of a glob, one string a component, with which a folder is searched.
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
# How many paths of a kind a message shows.
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a path setting.

    Attributes:
        files: in the order in which they are read.
        identities: of each file, equal for two names of the same file.
        left_out: what lies below the path and is not read, one message a kind.
    """

    files: list[Path]
    identities: list[Identity]
    left_out: list[str]


def find_files(pattern: str, setting: str = "dataset.path") -> Found:
    """Find the files that a path setting names.

    A file that is named directly is read, wherever it lies. Below a folder, or in the matches of a glob, these are left
    out: run directories, sweeps, nanolm's cache, hidden files, and what is neither a file nor a folder. Links to
    folders are followed, each folder is visited once, and a file with several names is read once.

    Args:
        pattern: the value of the setting.
        setting: its name, for error messages.

    Returns:
        The files, those of a folder sorted by path, and what was left out.

    Raises:
        DataError: there is no such file, something cannot be read, or nothing is left to read.
    """
    if not pattern.strip():
        raise DataError(f"{setting} is empty", where=setting, hint="name a file, a folder or a glob")
    path = user_path(pattern)
    status = _status(path, setting)
    if status is not None and stat.S_ISREG(status.st_mode):
        return Found([path], [identity_of(path, status)], [])
    if status is not None and stat.S_ISDIR(status.st_mode):
        return _Search(path, ("**", "*"), setting, is_folder=True).found(pattern)
    if status is not None:
        raise DataError(
            "this is a FIFO, a socket or a device, and a text is read several times",
            where=f"{setting}, {path}",
            hint="write the text to a file first",
        )
    root, rest = _split_glob(path)
    if not rest:
        raise _nothing_there(pattern, setting)
    return _Search(root, rest, setting, is_folder=False).found(pattern)


class _Search:
    """The search below a folder for the files that match a glob. Links are followed after all else.

    A file that can be reached without a link is therefore found under its own name.
    """

    def __init__(self, root: Path, rest: Rest, setting: str, is_folder: bool) -> None:
        self._setting, self._root, self._is_folder = setting, root, is_folder
        self._excluded = cache_identities(root)
        # Each file's best name: a name that no link leads to comes first.
        self._found: dict[Identity, tuple[bool, Path]] = {}
        self._left_out: dict[str, list[Path]] = collections.defaultdict(list)
        self._pending = [(root, frozenset([rest]), False)]
        self._links: collections.deque[tuple[Path, frozenset[Rest], bool]] = collections.deque()
        self._visited: set[tuple[Identity, frozenset[Rest]]] = set()

    def found(self, pattern: str) -> Found:
        """Search, and sort what was found.

        Raises:
            DataError: as `find_files`.
        """
        while self._pending or self._links:
            self._visit(*(self._pending.pop() if self._pending else self._links.popleft()))
        left_out = [_message(kind, paths) for kind, paths in self._left_out.items() if paths]
        if not self._found:
            raise self._nothing_left(pattern, left_out)
        named = {path: identity for identity, (_, path) in self._found.items()}
        files = sorted(named) if self._is_folder else sorted(named, key=str)
        return Found(files, [named[path] for path in files], left_out)

    def _visit(self, folder: Path, rests: frozenset[Rest], is_linked: bool) -> None:
        try:
            identity = identity_of(folder, folder.stat())
            if (identity, rests) in self._visited:
                return
            self._visited.add((identity, rests))
            with os.scandir(folder) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError) as error:
            if folder == self._root:
                return
            raise self._unreadable(folder, error) from error
        except OSError as error:
            raise self._unreadable(folder, error) from error
        if identity in self._excluded:
            self._left_out["cache folder"].append(folder)
            return
        kind = kind_of_run(folder, {e.name for e in entries}, (e.name for e in entries if e.is_dir()))
        # A sweep may be written into a folder of text; its jobs below are left out one by one.
        if kind == "run directory" or (kind and folder != self._root):
            self._left_out[kind].append(folder)
            return
        for entry in entries:
            self._consider(folder / entry.name, entry, rests, is_linked or entry.is_symlink())

    def _consider(self, path: Path, entry: os.DirEntry[str], rests: frozenset[Rest], is_linked: bool) -> None:
        is_match, below = _step(entry.name, rests)
        if not is_match and not below:
            if self._is_folder:
                self._left_out["hidden file or folder"].append(path)
            return
        try:
            if not is_match and not entry.is_dir():
                return
            status = path.stat()
        except OSError as error:
            if is_match:
                raise self._unreadable(path, error) from error
            return
        if stat.S_ISDIR(status.st_mode):
            if below:
                (self._links if entry.is_symlink() else self._pending).append((path, below, is_linked))
            else:
                self._left_out["folder that the glob does not descend into"].append(path)
        elif is_match and not stat.S_ISREG(status.st_mode):
            self._left_out["FIFO, socket or device"].append(path)
        elif is_match:
            identity, name = identity_of(path, status), (is_linked, path)
            known = self._found.setdefault(identity, name)
            if known[1] != path:
                self._found[identity] = min(known, name)
                self._left_out["second name of a file that is read once"].append(max(known, name)[1])

    def _unreadable(self, path: Path, error: OSError) -> DataError:
        dangling = path.is_symlink() and not path.exists()
        return DataError(
            f"a link leads nowhere: {error.strerror}" if dangling else f"this cannot be read: {error.strerror}",
            where=f"{self._setting}, {path}",
            hint="remove it, make it readable, or choose a path or a glob without it",
        )

    def _nothing_left(self, pattern: str, left_out: list[str]) -> DataError:
        if not left_out:
            if self._is_folder:
                return DataError(
                    "the folder has no files", where=str(self._root), hint=f"{self._setting}= a folder with text in it"
                )
            return _nothing_there(pattern, self._setting)
        return DataError(
            f"there is no text in {pattern!r} besides what is left out",
            where="; ".join([f"{self._setting}, looked for from {Path.cwd()}", *left_out]),
            hint="a file is read when it is named directly, wherever it lies, as in dataset.path=RUN/samples.txt",
        )


def _split_glob(path: Path) -> tuple[Path, Rest]:
    """The folder that a glob begins in, and the components from the first with a wildcard on."""
    root, parts = Path(path.anchor), list(path.parts[1:] if path.anchor else path.parts)
    while parts and (not glob.has_magic(parts[0]) or os.path.lexists(root / parts[0])):
        root /= parts.pop(0)
    if parts and parts[-1] == "**":
        parts.append("*")
    return root, tuple(parts)


def _step(name: str, rests: Iterable[Rest]) -> tuple[bool, frozenset[Rest]]:
    """Match one name in a folder.

    Returns:
        Whether a glob ends with this name, and the rests to search it with if it is a folder.
    """
    is_match, below = False, set()
    for rest in rests:
        for first, *others in _with_no_folders(rest):
            if first == "**":
                if not name.startswith("."):
                    below.add((first, *others))
            elif _matcher(first)(os.path.normcase(name)) and (not name.startswith(".") or first.startswith(".")):
                if others:
                    below.add(tuple(others))
                else:
                    is_match = True
    return is_match, frozenset(below)


def _with_no_folders(rest: Rest) -> Iterator[Rest]:
    """The rest of a glob, and what follows a ** that it begins with, which stands for no folder at all too."""
    yield rest
    while rest[0] == "**" and len(rest) > 1:
        rest = rest[1:]
        yield rest


@functools.lru_cache(maxsize=1024)
def _matcher(part: str) -> Callable[[str], object]:
    return re.compile(fnmatch.translate(os.path.normcase(part))).match


def _status(path: Path, setting: str) -> os.stat_result | None:
    """What the file system says of a path; None where it names nothing as it stands."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not path.is_symlink():
            return None
        found = "this is a link that leads nowhere"
    except OSError as error:
        found = f"this cannot be read: {error.strerror}"
    except ValueError as error:
        found = f"this is no path: {error}"
    raise DataError(found, where=f"{setting}, {path}", hint="name an existing file or folder")


def _nothing_there(pattern: str, setting: str) -> DataError:
    return DataError(
        f"there is no file, folder or match of {pattern!r}",
        where=f"{setting}, looked for from {Path.cwd()}",
        hint="name an existing file or folder, or a glob such as 'notes/**/*.md'",
    )


def _message(kind: str, paths: list[Path]) -> str:
    shown = ", ".join(map(_printable, sorted(paths)[:SHOWN]))
    more = f" and {len(paths) - SHOWN:,} more" if len(paths) > SHOWN else ""
    return f"{len(paths):,} {kind if len(paths) == 1 else PLURALS[kind]} ({shown}{more})"


def _printable(path: Path) -> str:
    """A path on one line, with bytes that are not UTF-8 and control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))
