"""Errors that a user can fix, with what was found, where, and a hint."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import re
from collections.abc import Iterable, Sequence


class NanolmError(ValueError):
    """An error that a user can fix; its message is printed without a traceback.

    Args:
        found: what is wrong, with the value.
        where: the setting, option, file or folder that it was found in.
        hint: what to do, or to type, next.
    """

    exit_status = 2

    def __init__(self, found: str, *, where: str = "", hint: str = "") -> None:
        self.found, self.where, self.hint = found, where, hint
        lines = [found]
        if where:
            lines.append(f"  where: {where}")
        if hint:
            lines.append(f"  hint:  {hint}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (functools.partial(type(self), where=self.where, hint=self.hint), (self.found,))


class SettingsError(NanolmError):
    """A setting is unknown, of the wrong type, out of range or inconsistent with another."""


class DataError(NanolmError):
    """A text is missing, empty, damaged or too short."""


class TokenizerError(NanolmError):
    """A tokenizer cannot be built or read, or cannot encode a text."""


class RunError(NanolmError):
    """A run directory is in use, missing, or of another run than expected."""


class BusyError(RunError):
    """A run directory is being written by another process."""


class CheckpointError(NanolmError):
    """A checkpoint is damaged, or does not fit the model."""


class DiskError(NanolmError):
    """A disk is full or fails; files saved before are intact."""

    exit_status = 1


class PathError(NanolmError):
    """A path cannot be used, for example because it is too long, below a file or read-only."""


class OutOfMemoryError(NanolmError):
    """An allocation failed, on the device or on the host."""

    exit_status = 1


class DivergedError(NanolmError):
    """The loss or its gradient is not finite; the weights are those of the last finite step."""

    exit_status = 1


class RankError(NanolmError):
    """A rank of a distributed run has ended or does not respond."""

    exit_status = 1


class SweepError(NanolmError):
    """Some jobs of a sweep failed; the others were run."""

    exit_status = 1


class ServerError(NanolmError):
    """A server cannot be reached, does not respond or refuses a request."""

    exit_status = 1


class Problems(SettingsError):
    """Several errors, reported together."""

    def __init__(self, problems: Sequence[NanolmError]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[object, ...]:
        return (Problems, (self.problems,))


def raise_all(problems: Sequence[NanolmError]) -> None:
    """Raise the problem, or all problems as one error; return if there is none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


# Hints for errors of the operating system.
_HINTS = {
    errno.ENAMETOOLONG: "choose a shorter name: most file systems take 255 bytes for each part of a path",
    errno.ENOTDIR: "a parent of the path is a file, not a folder: move the file away, or choose another path",
    errno.EISDIR: "it is a folder: choose a file",
    errno.EEXIST: "a file or a broken link of that name exists: move it away, or choose another path",
    errno.ENOENT: "check the path",
    errno.ELOOP: "the path is or contains a symbolic link: check it with `ls -l`, or choose another path",
    errno.EACCES: "check the permissions with `ls -ld`, or choose a writable path",
    errno.EPERM: "check the permissions with `ls -ld`, or choose a writable path",
    errno.EROFS: "the file system is mounted read-only: choose a path on another one",
    errno.ENOTEMPTY: "move what is in the folder away, or choose another path",
    errno.EXDEV: "choose a path on the same file system",
    errno.EINVAL: "choose another path",
    errno.ENXIO: "no process reads from it: choose another path",
    errno.ENOSPC: "free some space, or choose a path on another disk",
    errno.EDQUOT: "the disk quota is exceeded: free some space, or choose a path on another disk",
    errno.EFBIG: "the file system does not support files of this size: choose a path on another one",
    errno.EIO: "the disk or its network connection fails: check `dmesg`",
    errno.ESTALE: "the network file system lost the file: try again, or mount it again",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "the machine has too many open files: stop other programs",
}
# Failures of the system rather than mistakes of the user.
_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}


def explain_os_error(error: OSError, what: str = "", *, where: str = "", option: str = "") -> NanolmError:
    """Translate an error of the file system into one with the failed action, the path and a hint.

    Args:
        error: the original error.
        what: the action that failed; if empty, the message names the path.
        where: the path, if the error does not name it.
        option: the setting or option that chooses another path, such as "hydra.run.dir=".

    Returns:
        A DiskError if the system failed, a PathError if another path would work.

    Raises:
        OSError: the original error, if it is not about a file.
    """
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else where
    if error.errno not in _HINTS and not path:
        raise error
    if error.errno == errno.ENOENT and not _has_current_folder():
        return PathError(
            "the current folder has been deleted",
            where="the current folder of the shell",
            hint="cd to a folder that exists",
        )
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0, "check the path")
    return (DiskError if error.errno in _FAILURES else PathError)(
        f"{what}: {reason}" if what else f"{path}: {reason}" if path else reason,
        where=path,
        hint=f"{hint}; {option} chooses another" if option else hint,
    )


def is_disk_failure(error: OSError) -> bool:
    """Return whether an error is of a disk that is full, fails or is read-only."""
    return error.errno in {*_FAILURES, errno.EROFS}


def write_failure(error: Exception, what: str, where: str, then: str) -> DiskError:
    """Return the error for something that could be written before.

    Args:
        error: an OSError, or the error of a library that has no number.
        what: what cannot be written, such as "the run".
        where: its path, if the error does not name one.
        then: what continues it once the cause is gone, such as a command.
    """
    remedies = {errno.EROFS: "make the file system writable", errno.EIO: "check the disk (`dmesg`)"}
    remedies |= dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some disk space")
    system = error if isinstance(error, OSError) else OSError()
    remedy = remedies.get(system.errno or 0, "check the disk and the permissions")
    return DiskError(
        f"{what} cannot be written: {system.strerror or error}",
        where=os.fsdecode(system.filename) if isinstance(system.filename, str | bytes | os.PathLike) else where,
        hint=f"{remedy}, then {then}",
    )


def _has_current_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True


def install_hint(extra: str) -> str:
    """Return the command that installs the packages of an optional dependency.

    It lists the packages because nanolm itself is not on the package index.

    Args:
        extra: name in pyproject.toml's optional dependencies.
    """
    import importlib.metadata

    requirements = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("nanolm") or []:
            requirement, _, marker = line.partition(";")
            if re.search(rf"""extra == ['"]{re.escape(extra)}['"]""", marker):
                requirements.append(f"'{requirement.strip()}'")
    return f"pip install {' '.join(sorted(requirements))}" if requirements else f"pip install -e '.[{extra}]'"


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name for a mistyped one, or list the known names."""
    known = sorted(known)
    # A key without its group, or with a wrong one, is matched by its last component.
    by_end = {key.rsplit(".", 1)[-1]: key for key in known}
    end = name.rsplit(".", 1)[-1]
    close = [by_end[end]] if end in by_end else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [by_end[match] for match in difflib.get_close_matches(end, by_end, n=1)]
    if close:
        return f"did you mean {close[0]}?" + (f" (one of: {', '.join(known)})" if len(known) <= 12 else "")
    return f"one of: {', '.join(known)}" if len(known) <= 24 else "`nanolm train --help` lists them"
