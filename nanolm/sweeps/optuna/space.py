"""What a study may choose from: the settings that a line gives several values, in Hydra's words, as plain data."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nanolm.compose.ranges import wrong_range
from nanolm.errors import NanolmError, SettingsError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Floats are drawn to so many digits, so that the name of a run's folder says its settings exactly.
DIGITS = 4

Value = str | int | float


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several words, as they stand in the line: model=gpt,gpt2."""

    key: str
    words: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.words)

    def values(self) -> list[Value]:
        """Each of them, in order."""
        return list(self.words)


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers with a step between them, both ends included: range(1,9,2), int(interval(1,8))."""

    key: str
    low: int | float
    high: int | float
    step: int | float
    is_log: bool = False

    @property
    def count(self) -> int:
        """How many they are."""
        return round((self.high - self.low) / self.step) + 1

    @property
    def is_whole(self) -> bool:
        """Whether they are whole numbers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step))

    def values(self) -> list[Value]:
        """Each of them, in order."""
        return [_plain(self.low + n * self.step) for n in range(self.count)]

    def unit(self, value: float) -> float:
        """Where a value lies between 0 and 1; each has as much room around it as the others, log aside."""
        low, high, at = (_scaled(end, self.is_log) for end in (*self._edges(), value))
        return (at - low) / (high - low)

    def at(self, unit: float) -> int | float:
        """The value at a place between 0 and 1."""
        low, high = (_scaled(end, self.is_log) for end in self._edges())
        value = _unscaled(low + unit * (high - low), self.is_log)
        at = round((value - self.low) / self.step)
        return _plain(self.low + min(max(at, 0), self.count - 1) * self.step)

    def _edges(self) -> tuple[float, float]:
        return self.low - self.step / 2, self.high + self.step / 2


@dataclasses.dataclass(frozen=True)
class Interval:
    """Any number between two: interval(0,0.5), tag(log,interval(1e-4,1e-2))."""

    key: str
    low: float
    high: float
    is_log: bool = False

    @property
    def count(self) -> float:
        """How many they are: without end."""
        return math.inf

    def unit(self, value: float) -> float:
        """Where a value lies between 0 and 1."""
        low, high, at = (_scaled(end, self.is_log) for end in (self.low, self.high, value))
        return (at - low) / (high - low)

    def at(self, unit: float) -> float:
        """The value at a place between 0 and 1, to DIGITS digits."""
        low, high = (_scaled(end, self.is_log) for end in (self.low, self.high))
        return self.rounded(_unscaled(low + unit * (high - low), self.is_log))

    def rounded(self, value: float) -> float:
        """A value to DIGITS digits, inside the interval."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


Dimension = Choice | Range | Interval


def space_of(overrides: Iterable[Override]) -> tuple[list[Dimension], list[Override]]:
    """What the overrides of a sweep let vary, and those that are fixed. Of two for one key the later one counts.

    Raises:
        SettingsError: with every one that cannot be read as a set of values.
    """
    from nanolm.errors import raise_all

    by_key = {override.get_key_element(): override for override in overrides}
    space: list[Dimension] = []
    problems: list[NanolmError] = []
    for override in by_key.values():
        if override.is_sweep_override():
            try:
                space.append(_dimension(override))
            except SettingsError as error:
                problems.append(error)
    raise_all(problems)
    return space, [override for override in by_key.values() if not override.is_sweep_override()]


def grid(space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """Every point of a space without intervals, the last dimension varying fastest."""
    assert not any(isinstance(dimension, Interval) for dimension in space), "an interval has no list of values"
    columns = [dimension.values() for dimension in space if not isinstance(dimension, Interval)]
    return [
        dict(zip((dimension.key for dimension in space), values, strict=True)) for values in itertools.product(*columns)
    ]


def size_of(space: Sequence[Dimension]) -> float:
    """How many points there are; infinity where one of the dimensions is an interval."""
    counts: list[float] = [part.count for part in space]
    return math.prod(counts)


def as_overrides(point: dict[str, Value]) -> list[str]:
    """A point as words of a line, key=value."""
    return [f"{key}={in_word(value)}" for key, value in point.items()]


def in_word(value: Value) -> str:
    """A value as it stands in a line."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _dimension(override: Override) -> Dimension:
    """A dimension of one sweeping override.

    Raises:
        SettingsError: it is empty, or its ends or its tag are not right.
    """
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep, Sweep

    if wrong := wrong_range(override):
        raise wrong
    key, swept = override.get_key_element(), override.value()
    where = override.input_line or key
    tags = set(swept.tags) if isinstance(swept, Sweep) else set()
    if not tags <= {"log"}:
        raise SettingsError(
            f"the tag {', '.join(sorted(tags - {'log'}))} is not known", where=where, hint="log or none"
        )
    is_log = "log" in tags
    if isinstance(swept, IntervalSweep):
        assert swept.start is not None, "the parser refuses an interval without ends"
        assert swept.end is not None, "the parser refuses an interval without ends"
        _require_ends(swept.start, swept.end, is_log, where)
        if isinstance(swept.start, int) and isinstance(swept.end, int):
            return Range(key, swept.start, swept.end, 1, is_log)
        return Interval(key, float(swept.start), float(swept.end), is_log)
    if isinstance(swept, RangeSweep):
        values = sorted(_plain(value) for value in swept.range())
        if len(values) > 1:
            step = _plain(abs(swept.step))
            _require_ends(values[0], values[-1], is_log, where)
            if is_log and step != 1:
                raise SettingsError(f"a log scale has no steps of {step:g}", where=where, hint="no step, or no tag")
            return Range(key, values[0], values[-1], step, is_log)
        words = tuple(map(in_word, values))
    else:
        words = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not words:
        raise SettingsError("no value is in it", where=where, hint="give one at least")
    if is_log:
        raise SettingsError("words have no log scale", where=where, hint="tag(log,interval(LOW,HIGH))")
    return Choice(key, words)


def _require_ends(low: float, high: float, is_log: bool, where: str) -> None:
    if not low < high:
        raise SettingsError(
            f"the interval goes from {low:g} to {high:g}", where=where, hint="the lower end first, and two that differ"
        )
    if is_log and low <= 0:
        raise SettingsError(
            f"a log scale begins above 0, and this one at {low:g}", where=where, hint="a lower end above 0, or no tag"
        )


def _plain(value: Any) -> Any:
    """A number without the dust of binary fractions."""
    return value if isinstance(value, int) else round(float(value), 12)


def _scaled(value: float, is_log: bool) -> float:
    return math.log(value) if is_log else value


def _unscaled(value: float, is_log: bool) -> float:
    return math.exp(value) if is_log else value
