"""Command-line options: checks of their values, and a parser that reports every mistake at once."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from nanolm.errors import NanolmError, SettingsError, explain_os_error, raise_all
from nanolm.files import user_path

# Converts the text of an option to its value; the error that it raises continues a sentence: "--seed" + "is -1".
Check = Callable[[str], Any]

# Length limit of a value quoted in an error.
SHOWN_CHARACTERS = 40

# Values of trainer.device and --device.
DEVICES = re.compile(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?")
DEVICES_HINT = "one of: auto, cpu, mps, cuda, cuda:0, cuda:1, ..."

LARGEST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a range.

    Attributes:
        kind: int or float.
        low, high: inclusive bounds.
        hint: what to type instead.
        is_above_zero: whether every number above 0 is in the range, whose lower bound is the smallest of them.
    """

    kind: type[int] | type[float]
    low: float
    high: float
    hint: str
    is_above_zero: bool = False

    @property
    def lower_bound(self) -> str:
        """The lower bound in words."""
        return "above 0" if self.is_above_zero else f"at least {self.low:g}"

    def __call__(self, text: str) -> int | float:
        """Parse a number.

        Raises:
            SettingsError: the text is not a number, or is out of range.
        """
        noun = "a whole number" if self.kind is int else "a number"
        try:
            number = self.kind(text)
        except ValueError as error:
            raise SettingsError(f"is {quote(text)}, which is not {noun}", hint=self.hint) from error
        if not self.low <= number <= self.high:
            reason = f"must be {self.lower_bound}" if number < self.low else "is too large"
            reason = "is not a finite number" if isinstance(number, float) and not math.isfinite(number) else reason
            raise SettingsError(f"is {quote(text)[1:-1]}, which {reason}", hint=self.hint)
        return number


SEED = Number(int, 0, LARGEST, f"a whole number from 0 to {LARGEST}")
COUNT = Number(int, 1, LARGEST, "a whole number, 1 or more")
COUNT_OR_NONE = Number(int, 0, LARGEST, "a whole number, 0 or more")
TEMPERATURE = Number(float, 0.0, 1e30, "0 (greedy decoding), or a number above 0 such as 0.8")
TOP_P = Number(float, math.ulp(0.0), 1.0, "above 0, at most 1 (1 samples from all tokens)", is_above_zero=True)
MIN_P = Number(float, 0.0, 1.0, "from 0 (all tokens) to 1")
REPETITION_PENALTY = Number(float, math.ulp(0.0), 1e30, "above 0; 1 has no effect, more than 1 discourages repetition")
SAMPLES = Number(int, 1, 4096, "a whole number from 1 to 4096")
ALTERNATIVES = Number(int, 0, 100, "a whole number from 0 to 100")
LOSS = Number(float, math.ulp(0.0), 1e300, "a loss above 0, such as 1.88")
POSITIVE = Number(float, math.ulp(0.0), 1e300, "a number above 0, such as 5M or 1e14", is_above_zero=True)
DIFFERENCE = Number(float, math.ulp(0.0), 1e300, "a difference of losses above 0, such as 0.005", is_above_zero=True)
MARGIN = Number(float, 0.0, 1e300, "a difference of losses, 0 or more, such as 0.002")
SECONDS = Number(float, math.ulp(0.0), 86_400.0, "seconds above 0, at most a day (86400)")


def text(value: str) -> str:
    """Return a text that is not empty and can be encoded.

    Raises:
        SettingsError: the text is empty, or the terminal did not send UTF-8.
    """
    return nonempty(utf8(value))


def utf8(value: str) -> str:
    """Return a text that can be encoded; it may be empty.

    Raises:
        SettingsError: the terminal did not send UTF-8.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"is {quote(value)}, which is not UTF-8", hint="type it in a UTF-8 terminal") from error
    return value


def nonempty(value: str) -> str:
    """Return a value that is not empty, as an unset shell variable would be.

    Raises:
        SettingsError: the value is empty.
    """
    if not value.strip():
        raise SettingsError("is empty", hint="give it a value, or leave it out")
    return value


def path(value: str) -> Path:
    """Return a path that is not empty; a leading ~/ is expanded."""
    return user_path(nonempty(value))


def names(value: str) -> list[str]:
    """Split names at commas.

    Raises:
        SettingsError: there is no name.
    """
    found = [name.strip() for name in value.split(",") if name.strip()]
    if not found:
        raise SettingsError(f"is {quote(value)}, which contains no name", hint="names separated by commas")
    return found


def amount(value: str) -> float:
    """Return a number above 0, which may end with k, M, G or B (billion): 5M, 1e14.

    Raises:
        SettingsError: the value is not such a number.
    """
    unit = {"k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}.get(value[-1:], 1.0)
    return unit * POSITIVE(value[:-1] if unit > 1 else value)


def device(value: str) -> str:
    """Return the name of a device, which this machine may not have.

    Raises:
        SettingsError: the name is not that of a device.
    """
    if not DEVICES.fullmatch(value):
        raise SettingsError(f"is {quote(value)}", hint=DEVICES_HINT)
    return value


def checkpoint(value: str) -> str:
    """Return "best", "last", or a step.

    Raises:
        SettingsError: the value is none of these.
    """
    if value in ("best", "last"):
        return value
    try:
        return str(COUNT_OR_NONE(value))
    except SettingsError as error:
        raise SettingsError(f"is {quote(value)}", hint="best, last, or a step") from error


def quote(value: str) -> str:
    """Quote a value for an error, shortened."""
    return repr(value if len(value) <= SHOWN_CHARACTERS else f"{value[:SHOWN_CHARACTERS]}...")


class Parser(argparse.ArgumentParser):
    """A parser that raises one SettingsError with every mistake in the options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._problems: dict[str, NanolmError] = {}

    def describe(self, text: str) -> None:
        """Append sentences to the description."""
        self.description = f"{self.description} {text}"

    def add(self, *names: str, check: Check, **settings: Any) -> None:
        """Add an option whose value is checked.

        Args:
            names, settings: as for add_argument; the default is added to the help.
            check: converts the text to the value; raises a NanolmError, or an OSError of a path.
        """
        if (default := settings.get("default")) not in (None, []):
            settings["help"] += f" (default: {default})"
        label = max(names, key=len) if names[0].startswith("-") else str(settings.get("metavar") or names[0])

        def checked(value: str) -> Any:
            try:
                return check(value)
            except NanolmError as error:
                problem = type(error)(f"{label} {error.found}", where=label, hint=error.hint)
            except OSError as error:
                hint = explain_os_error(error, where=value).hint
                problem = SettingsError(f"{label} {value}: {error.strerror}", where=label, hint=hint)
            self._problems[str(problem)] = problem
            return None

        self.add_argument(*names, type=checked, **settings)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse options and positional arguments in any order.

        Raises:
            SettingsError: with every mistake.
        """
        self._problems.clear()
        found = self.parse_intermixed_args(arguments)
        raise_all(list(self._problems.values()))
        return found

    def error(self, message: str) -> NoReturn:
        """Raise the error of argparse, together with the mistakes found before."""
        problem = SettingsError(message, where=self.prog, hint=f"`{self.prog} --help` lists the options")
        raise_all([*self._problems.values(), problem])
        raise problem
