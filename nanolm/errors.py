"""What a user can get wrong. Each error says what was found, where, and how to hint it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence


class NanolmError(ValueError):
    """Something the user can hint. It is printed as it stands, without a traceback.

    Args:
        found: what is wrong, with the value that was found.
        where: the setting, file or folder it was found in.
        hint: what to do about it.
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
        return (_rebuild, (type(self), self.found, self.where, self.hint))


def _rebuild(kind: type[NanolmError], found: str, where: str, hint: str) -> NanolmError:
    return kind(found, where=where, hint=hint)


class SettingsError(NanolmError):
    """A setting that is unknown, of the wrong type, out of range or at odds with another."""


class DataError(NanolmError):
    """A text that is missing, empty, damaged or too short."""


class TokenizerError(NanolmError):
    """A tokenizer that cannot be built or read, or text that it cannot encode."""


class RunError(NanolmError):
    """A run directory that is in use, is not one, or holds something else than was asked for."""


class BusyError(RunError):
    """A run directory that another process writes to."""


class CheckpointError(NanolmError):
    """A checkpoint that is damaged, or of another model than the one at hand."""


class DiskError(NanolmError):
    """The disk is full, or refuses to be written to. What was saved before stands."""

    exit_status = 1


class PathError(NanolmError):
    """A path that cannot be used as it was asked for: too long, below a file, read-only and the like."""


class OutOfMemoryError(NanolmError):
    """Memory was refused, on the device or by the system."""

    exit_status = 1


class DivergedError(NanolmError):
    """The loss or its gradient is no longer a finite number. The weights are those of the last good step."""

    exit_status = 1


class RankError(NanolmError):
    """Of the processes that train together one has ended or does not answer."""

    exit_status = 1


class ServerError(NanolmError):
    """A server that cannot be reached, does not answer or refuses."""

    exit_status = 1


class Problems(SettingsError):
    """Several mistakes, reported at once."""

    def __init__(self, problems: Sequence[NanolmError]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in problems))

    def __reduce__(self) -> tuple[object, ...]:
        return (Problems, (self.problems,))


def raise_all(problems: Sequence[NanolmError]) -> None:
    """Raises the one problem, or all of them together; returns when there is none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Problems(problems)


# What the user can do about an error of the operating system, by its number.
_HINTS = {
    errno.ENAMETOOLONG: "choose a shorter name: most file systems take 255 bytes for each part of a path",
    errno.ENOTDIR: "a part of the path is a file, not a folder: move the file away, or choose another path",
    errno.EISDIR: "it is a folder: name a file",
    errno.EEXIST: "there is a file or a dangling link of that name: move it away, or choose another path",
    errno.ENOENT: "check the path",
    errno.ELOOP: "a symbolic link is in the way: check it with `ls -l`, or choose another path",
    errno.EACCES: "check the permissions with `ls -ld`, or choose a path that you may write to",
    errno.EPERM: "check the permissions with `ls -ld`, or choose a path that you may write to",
    errno.EROFS: "the file system is mounted read-only: choose a path on another one",
    errno.ENOTEMPTY: "move what is in the folder away, or choose another path",
    errno.EXDEV: "choose a path on the same file system",
    errno.EINVAL: "choose another path",
    errno.ENXIO: "nothing reads from it: choose another path",
    errno.ENOSPC: "make room on the disk, or choose a path on another one",
    errno.EDQUOT: "the disk quota is used up: make room, or choose a path on another disk",
    errno.EFBIG: "the file system does not take a file of this size: choose a path on another one",
    errno.EIO: "the disk or the network that it is on fails: check `dmesg`",
    errno.ESTALE: "the network file system lost the file: try again, or mount it anew",
    errno.EMFILE: "raise the limit of open files: ulimit -n 4096",
    errno.ENFILE: "the machine has too many open files: end other programs",
}
# Those that are no mistake in what was asked.
_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}


def explain_os_error(error: OSError, what: str = "", *, where: str = "", option: str = "") -> NanolmError:
    """Describe an error of the file system to the user: what failed, the path, and a hint.

    Args:
        error: as it was raised.
        what: what could not be done; the path is named where it is empty.
        where: the path, if the error does not name it.
        option: the setting or flag that chooses another path, such as "hydra.run.dir=".

    Returns:
        A DiskError where the system failed, a PathError where another path would do.

    Raises:
        OSError: the error itself, where it has nothing to do with files.
    """
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else where
    if error.errno not in _HINTS and not path:
        raise error
    if error.errno == errno.ENOENT and not _has_current_folder():
        return PathError(
            "the current folder has been deleted",
            where="the shell that nanolm runs in",
            hint="cd to a folder that exists",
        )
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0, "check the path")
    return (DiskError if error.errno in _FAILURES else PathError)(
        f"{what}: {reason}" if what else f"{path}: {reason}" if path else reason,
        where=path,
        hint=f"{hint}; {option} chooses another" if option else hint,
    )


def _has_current_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return False
    return True


def install_hint(extra: str) -> str:
    """The command that installs what an optional part of nanolm needs.

    It names the packages themselves: nanolm may have been installed from a checkout or from a wheel, and is not on the
    package index.

    Args:
        extra: of pyproject.toml's optional dependencies.
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
    """A sentence that points from a mistyped name to the known ones."""
    known = sorted(known)
    # A key given without its group, or with a wrong one, is near by its last part.
    last = {key.rsplit(".", 1)[-1]: key for key in known}
    close = [last[name.rsplit(".", 1)[-1]]] if name.rsplit(".", 1)[-1] in last else []
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [last[match] for match in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1)]
    if close:
        return f"did you mean {close[0]}?" + (f" (one of: {', '.join(known)})" if len(known) <= 12 else "")
    return f"one of: {', '.join(known)}" if len(known) <= 24 else "`nanolm train --help` lists them"
