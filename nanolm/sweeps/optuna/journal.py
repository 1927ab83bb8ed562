"""The journal of a study: a file of JSON lines, each flushed to disk before the study continues.

Optuna's own reader believes what a journal says. This one checks each line before Optuna applies it: a line has an
operation with fields of the right types, about a study and a trial that exist. Lines written by nanolm also carry their
number and a checksum over all lines before them, so that lost, doubled, moved and altered lines are noticed.

The file locks of Optuna remain for half a minute when their holder is killed. nanolm's are released with the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState

from nanolm.errors import RunError, write_failure
from nanolm.files import open_regular, wrong_file_types
from nanolm.locks import Lock
from nanolm.sweeps.optuna.journal_entries import OPERATIONS, contains, is_count, is_text
from nanolm.untrusted import open_inside

JOURNAL = "study.journal"
# How Optuna starts every line.
LINE_START = b'{"op_code":'

# A line has a few hundred bytes, and a study of a thousand trials a few megabytes.
MAX_LINE = 1_000_000
MAX_BYTES = 1_000_000_000

_CHECKSUM = re.compile(rb',"line":(\d{1,12}),"check":"([0-9a-f]{16})"\}\n')
# Bytes of the longest such end of a line.
_CHECKSUM_LENGTH = 60


class JournalLock:
    """A lock that is released when its process ends. Acquiring it removes a line that a kill left incomplete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock(path.with_name(f"{path.name}.lock"), "hydra.sweep.dir=FOLDER")

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            truncate_incomplete_line(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


class Journal(BaseJournalBackend):
    """The file of a journal, for Optuna's storage; see the module.

    Args:
        path: the file, which is created when something is first written to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = JournalLock(path)
        self._restart()

    def _restart(self) -> None:
        self._offset, self._n_lines = 0, 0
        self._check = ""
        self._pending: list[dict[str, Any]] = []
        self._studies: dict[str, int] = {}
        self._n_studies, self._n_trials = 0, 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the entries from a number on, counted from 0.

        Raises:
            RunError: a line is damaged, or the file cannot be read.
        """
        if log_number_from < self._n_lines - len(self._pending):
            self._restart()
        for entry in self._pending[log_number_from - (self._n_lines - len(self._pending)) :]:
            yield entry
        self._pending = []
        for entry in self._read():
            if self._n_lines > log_number_from:
                yield entry

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries and flush them to disk.

        Raises:
            RunError: a line that another process has added is damaged.
            PathError: the file cannot be locked.
            DiskError: it cannot be written.
        """
        try:
            self._lock.acquire()
            try:
                # The number and the checksum continue those of the last line.
                self._pending += self._read()
                number, check, lines = self._n_lines, self._check, []
                for log in logs:
                    number += 1
                    # A diverged trial has an infinite loss.
                    text = json.dumps({**log, "line": number}, separators=(",", ":"))[:-1].encode()  # noqa: TID251
                    check = _checksum(check, text)
                    lines.append(b'%s,"check":"%s"}\n' % (text, check.encode()))
                with open_regular(self._path, "ab") as file:
                    file.write(b"".join(lines))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                self._lock.release()
        except OSError as error:
            then = "repeat the command: it continues the study"
            raise write_failure(error, "the study's journal", str(self._path), then) from error

    def _read(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines that have not been read."""
        try:
            file = open_inside(self._path, self._path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise damaged_journal(self._path.parent, f"it cannot be read: {error.strerror or error}") from error
        with file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise damaged_journal(self._path.parent, f"it has {size:,} bytes, more than {MAX_BYTES:,}")
            if size < self._offset:
                raise damaged_journal(self._path.parent, f"line {self._n_lines}, which was read before, is missing")
            file.seek(self._offset)
            while line := file.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise self._damaged(f"has more than {MAX_LINE:,} bytes")
                if not line.endswith(b"\n"):
                    # Another process is writing it, or was killed.
                    if not line.startswith(LINE_START) and not LINE_START.startswith(line):
                        raise self._damaged("is not an entry of a journal")
                    return
                entry = self._parse(line)
                self._n_lines += 1
                self._offset += len(line)
                yield entry

    def _parse(self, line: bytes) -> dict[str, Any]:
        """Check a line and return its entry."""
        try:
            entry = json.loads(line)
        except RecursionError as error:
            raise self._damaged("is nested too deeply") from error
        except ValueError as error:
            raise self._damaged("is not JSON") from error
        self._verify(line)
        code = entry.get("op_code") if isinstance(entry, dict) else None
        if not is_count(code) or not isinstance(entry, dict):
            raise self._damaged("is not an entry of a journal")
        if code not in OPERATIONS:
            raise self._damaged(f"has the unknown operation {code}")
        required, optional = OPERATIONS[code]
        wrong = [key for key, check in {"worker_id": is_text, **required}.items() if not check(entry.get(key))]
        wrong += [key for key, check in optional.items() if key in entry and not check(entry[key])]
        if wrong:
            raise self._damaged(f"has no valid {', '.join(wrong)}")
        self._follow(code, entry)
        return entry

    def _verify(self, line: bytes) -> None:
        """Check the number and the checksum of a line. Only lines of earlier versions, at the start, have none."""
        end = _CHECKSUM.search(line, max(0, len(line) - _CHECKSUM_LENGTH))
        if end is None or end.end() != len(line):
            if self._check:
                raise self._damaged("has no checksum, unlike the lines before")
            return
        expected, found = self._n_lines + 1, int(end[1])
        if found > expected:
            lost = f"line {expected} is" if found == expected + 1 else f"lines {expected} to {found - 1} are"
            raise self._damaged(f"should be line {found}: {lost} missing")
        if found < expected:
            raise self._damaged(f"is a copy of line {found}: lines were doubled or moved")
        check = _checksum(self._check, line[: end.start(2) - len(b',"check":"')])
        if check.encode() != end[2]:
            raise self._damaged("does not have its checksum: it or a line before it was altered")
        self._check = check

    def _follow(self, code: int, entry: Mapping[str, Any]) -> None:
        """Check that the study and the trial of an entry exist; count those that it creates."""
        if code == 0 and entry["study_name"] not in self._studies:
            self._studies[entry["study_name"]] = self._n_studies
            self._n_studies += 1
        if entry.get("study_id", -1) >= self._n_studies:
            raise self._damaged(f"is about study {entry['study_id']}, which no line before it creates")
        if code in (5, 6, 7, 8, 9) and entry["trial_id"] >= self._n_trials:
            raise self._damaged(f"is about trial {entry['trial_id']}, which no line before it creates")
        if code == 1:
            self._studies = {name: study for name, study in self._studies.items() if study != entry["study_id"]}
        if code == 4 and entry["study_id"] in self._studies.values():
            self._n_trials += 1
            if entry.get("params", {}).keys() != entry.get("distributions", {}).keys():
                raise self._damaged("has no valid params")
        values = [(entry["distribution"], entry["param_value_internal"])] if code == 5 else []
        values += [(entry["distributions"][name], value) for name, value in entry.get("params", {}).items()]
        if not all(contains(text, value) for text, value in values):
            raise self._damaged("has a value outside of its distribution")
        if code == 6:
            state = TrialState(entry["state"])
            needed = "datetime_start" if state == TrialState.RUNNING else "datetime_complete"
            if state != TrialState.WAITING and needed not in entry:
                raise self._damaged(f"has no valid {needed}")

    def _damaged(self, reason: str) -> RunError:
        return damaged_journal(self._path.parent, f"line {self._n_lines + 1} {reason}", self._n_lines)


def _checksum(previous: str, text: bytes) -> str:
    return hashlib.sha256(previous.encode() + text).hexdigest()[:16]


def truncate_incomplete_line(path: Path) -> None:
    """Truncate a file after its last line feed.

    Raises:
        RunError: the line is longer than any entry.
    """
    try:
        file = open_regular(path, "rb+")
    except FileNotFoundError:
        return
    with file:
        length = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, length - MAX_LINE))
        tail = file.read()
        if tail.endswith(b"\n") or not tail:
            return
        end = tail.rfind(b"\n") + 1
        if start > 0 and end == 0:
            raise damaged_journal(path.parent, f"its last line has more than {MAX_LINE:,} bytes")
        file.truncate(start + end)


def open_journal(folder: Path) -> JournalStorage:
    """Open the journal in the folder of a sweep.

    Raises:
        RunError: the journal is a link, a special file or damaged.
        ValueError, LookupError, TypeError, AttributeError, AssertionError: Optuna cannot apply it; see
            `damaged_journal`.
    """
    path = folder / JOURNAL
    if found := wrong_file_types(folder, [path], []):
        raise RunError(
            f"the study's journal cannot be written: {', '.join(found)}",
            where=str(folder),
            hint="replace it with a copy: nanolm does not write through links",
        )
    return JournalStorage(Journal(path))


def damaged_journal(folder: Path, reason: object, n_intact: int = 0) -> RunError:
    """Return the error for a journal that cannot be read.

    Args:
        n_intact: number of lines before the damaged one.
    """
    keep = f"keep its intact lines, which `head -n {n_intact} {JOURNAL}` prints; or " if n_intact else ""
    return RunError(
        f"the study's journal is damaged: {reason}",
        where=str(folder / JOURNAL),
        hint=f"{keep}move it away: a new study uses the finished runs in the folder and trains none of them again",
    )
