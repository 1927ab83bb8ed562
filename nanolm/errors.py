"""What a user can get wrong. Each error says what was found, where, and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class NanolmError(ValueError):
    """Something the user can mend. It is printed as it stands, without a traceback.

    Args:
        found: what is wrong, with the value that was found.
        where: the setting, file or folder it was found in.
        mend: what to do about it.
    """

    exit_status = 2

    def __init__(self, found: str, *, where: str = "", mend: str = "") -> None:
        self.found, self.where, self.mend = found, where, mend
        lines = [found]
        if where:
            lines.append(f"  where: {where}")
        if mend:
            lines.append(f"  mend:  {mend}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.found, self.where, self.mend))


def _rebuild(kind: type[NanolmError], found: str, where: str, mend: str) -> NanolmError:
    return kind(found, where=where, mend=mend)


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
