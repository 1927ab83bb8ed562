"""The journal of a study: a file of JSON lines, which Optuna writes and flushes to disk one by one.

The file locks of Optuna remain for half a minute when their holder is killed. These are locks of the kernel, which
are released with the process.
"""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nanolm.errors import RunError
from nanolm.files import open_regular, wrong_file_types
from nanolm.json_text import parse_json

JOURNAL = "study.journal"
# How Optuna starts every line.
LINE_START = b'{"op_code":'


class JournalLock:
    """A lock that is released when its process ends. Acquiring it removes a line that a kill left incomplete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        truncate_incomplete_line(self._path)
        return True

    def release(self) -> None:
        self._lock.release()


def truncate_incomplete_line(path: Path) -> None:
    """Truncate a file after its last line feed."""
    with open_regular(path, "rb+") as file:
        length = file.seek(0, os.SEEK_END)
        if length == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def open_journal(folder: Path) -> JournalStorage:
    """Open the journal in the folder of a sweep, which is created if it does not exist.

    Raises:
        RunError: the journal is a link or a special file.
        ValueError, LookupError, TypeError, AttributeError, AssertionError: it is damaged; see `damaged_journal`.
    """
    path = folder / JOURNAL
    folder.mkdir(parents=True, exist_ok=True)
    if found := wrong_file_types(folder, [path], []):
        raise RunError(
            f"the study's journal cannot be written: {', '.join(found)}",
            where=str(folder),
            hint="replace it with a copy: nanolm does not write through links",
        )
    _require_journal(path)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))


def damaged_journal(folder: Path, reason: object) -> RunError:
    """Return the error for a journal that cannot be read."""
    return RunError(
        f"the study's journal is damaged: {reason}",
        where=str(folder / JOURNAL),
        hint="move it away: a new study uses the finished runs in the folder and trains none of them again",
    )


def _require_journal(path: Path) -> None:
    """Check a file before Optuna appends to it. Its last line may be incomplete.

    Raises:
        ValueError: it is not a journal.
    """
    if not path.exists():
        return
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        entry = parse_json(line)
        if not isinstance(entry, dict) or "op_code" not in entry:
            raise ValueError(f"line {number} is not an entry of a journal")
    if not last.startswith(LINE_START) and not LINE_START.startswith(last):
        raise ValueError("the last line is not an entry of a journal")
