"""Command-line options whose values are checked as they are parsed: the bounds, and a parser that reports mistakes."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.files import user_path

# Turns the text of an option into its value; raises a SettingsError without a place.
Check = Callable[[str], Any]

# Characters of a mistaken value that an error repeats.
SHOWN_CHARACTERS = 40

# Names that trainer.device and --device take.
DEVICES = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?")
DEVICES_HINT = "one of: auto, cpu, mps, cuda, cuda:0, cuda:1, ..."

LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range.

    Attributes:
        kind: int or float.
        low, high: both are allowed.
        hint: what to type instead; None says the range.
    """

    kind: type[int] | type[float]
    low: float
    high: float
    hint: str = ""

    def __call__(self, text: str) -> int | float:
        """Return the number that a text is.

        Raises:
            SettingsError: it is not a number, or out of the range.
        """
        noun = "a whole number" if self.kind is int else "a number"
        hint = self.hint or f"{noun} of at least {self.low:g}"
        try:
            number = self.kind(text)
        except ValueError as error:
            raise SettingsError(f"is {shown(text)}, which is not {noun}", hint=hint) from error
        if not self.low <= number <= self.high:
            words = f"must be at least {self.low:g}" if number < self.low else "is too large"
            words = "is not a finite number" if isinstance(number, float) and not math.isfinite(number) else words
            raise SettingsError(f"is {shown(text)[1:-1]}, which {words}", hint=hint)
        return number


# The bounds of every number on the command line.
SEED = Number(int, 0, LARGEST, f"a whole number from 0 to {LARGEST}")
COUNT = Number(int, 1, LARGEST, "a whole number, 1 or more")
COUNT_OR_NONE = Number(int, 0, LARGEST, "a whole number, 0 or more")
TEMPERATURE = Number(float, 0.0, 1e30, "0 (the likeliest token), or a number above 0 such as 0.8")
LOSS = Number(float, math.ulp(0.0), 1e300, "a loss above 0, such as 1.88")
SECONDS = Number(float, math.ulp(0.0), 86_400.0, "seconds above 0, at most a day (86400)")


def text(value: str) -> str:
    """Return a text that can be encoded.

    Raises:
        SettingsError: it is empty, or the terminal's bytes were not UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"is {shown(value)}, which is not UTF-8", hint="type it in a UTF-8 terminal") from error
    return nonempty(value)


def nonempty(value: str) -> str:
    """Return a value that is not empty, as that of a shell variable that is not set.

    Raises:
        SettingsError: it is empty.
    """
    if not value.strip():
        raise SettingsError("is empty", hint="give it a value, or leave it out")
    return value


def path(value: str) -> Path:
    """Return a path that is not empty; a leading ~/ is the home folder."""
    return user_path(nonempty(value))


def file_to_write(value: str) -> Path:
    """Return the path of a file, which may be there already.

    Raises:
        SettingsError: it is empty or a folder.
    """
    found = path(value)
    try:
        is_file_name = bool(found.name) and found.name != ".." and not found.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"is {shown(value)}, which cannot be a path: {reason}", hint="name a file") from error
    if not is_file_name:
        raise SettingsError(f"is {shown(value)}, which is a folder", hint="name a file")
    return found


def words(value: str) -> list[str]:
    """Return names that are separated by commas, at least one.

    Raises:
        SettingsError: there is none.
    """
    found = [word.strip() for word in value.split(",") if word.strip()]
    if not found:
        raise SettingsError(f"is {shown(value)}, which holds no name", hint="names with commas between them")
    return found


def device(value: str) -> str:
    """Return the name of a device, which this machine may not have.

    Raises:
        SettingsError: no device is called so.
    """
    if not DEVICES.fullmatch(value):
        raise SettingsError(f"is {shown(value)}", hint=DEVICES_HINT)
    return value


def checkpoint(value: str) -> str:
    """Return which checkpoint: best, last, or a step.

    Raises:
        SettingsError: it is none of these.
    """
    if value in ("best", "last"):
        return value
    try:
        return str(Number(int, 0, LARGEST)(value))
    except SettingsError as error:
        raise SettingsError(f"is {shown(value)}", hint="best, last, or a step") from error


def shown(value: str) -> str:
    """Return a value as an error repeats it."""
    return repr(value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}...")


class Parser(argparse.ArgumentParser):
    """A parser that raises every mistake in the options as a SettingsError, all of them at once."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._problems: dict[str, NanolmError] = {}

    def add(self, *names: str, check: Check, **settings: Any) -> None:
        """Add an option whose value is checked.

        Args:
            names: as add_argument takes them.
            check: returns the value of the option's text, or raises a SettingsError that says what is wrong with it.
            settings: as add_argument takes them.
        """
        label = max(names, key=len) if names[0].startswith("-") else str(settings.get("metavar") or names[0])

        def checked(value: str) -> Any:
            try:
                return check(value)
            except SettingsError as error:
                problem = SettingsError(f"{label} {error.found}", where=label, hint=error.hint)
                self._problems[str(problem)] = problem
                return None

        self.add_argument(*names, type=checked, **settings)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the words of a command, which may be in any order.

        Raises:
            SettingsError: with every mistake in them.
        """
        self._problems.clear()
        found = self.parse_intermixed_args(arguments)
        raise_all(list(self._problems.values()))
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse says is wrong, with the mistakes that were found before."""
        problem = SettingsError(message, where=self.prog, hint=f"`{self.prog} --help` lists the options")
        raise_all([*self._problems.values(), problem])
        raise problem
