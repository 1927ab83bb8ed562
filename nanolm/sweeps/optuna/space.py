"""The search space of a study: the settings to which a command line gives several values in Hydra's syntax."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.sweeps.combinations import swept_values

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Significant digits of a drawn float, so that the name of a run's folder has the exact value.
DIGITS = 4

Value = str | int | float


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of several options, as on the command line: model=gpt,gpt2."""

    key: str
    options: tuple[str, ...]

    def values(self) -> list[Value]:
        return list(self.options)


@dataclasses.dataclass(frozen=True)
class Range:
    """Equally spaced numbers, both ends included: range(1,9,2), int(interval(1,8))."""

    key: str
    low: int | float
    high: int | float
    step: int | float
    is_log: bool = False

    @property
    def count(self) -> int:
        """The number of values."""
        return round((self.high - self.low) / self.step) + 1

    @property
    def is_integer(self) -> bool:
        """Whether all values are integers."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step))

    def values(self) -> list[Value]:
        return [_rounded(self.low + n * self.step) for n in range(self.count)]

    def to_unit(self, value: float) -> float:
        """Map a value to the unit interval, where each value has an equal share unless the scale is logarithmic."""
        return _to_unit(value, *self._ends(), self.is_log)

    def from_unit(self, unit: float) -> int | float:
        """Map a number of the unit interval to the nearest value."""
        at = round((_from_unit(unit, *self._ends(), self.is_log) - self.low) / self.step)
        return _rounded(self.low + min(max(at, 0), self.count - 1) * self.step)

    def _ends(self) -> tuple[float, float]:
        return self.low - self.step / 2, self.high + self.step / 2


@dataclasses.dataclass(frozen=True)
class Interval:
    """Any number between two: interval(0,0.5), tag(log,interval(1e-4,1e-2))."""

    key: str
    low: float
    high: float
    is_log: bool = False

    def to_unit(self, value: float) -> float:
        """Map a value to the unit interval."""
        return _to_unit(value, self.low, self.high, self.is_log)

    def from_unit(self, unit: float) -> float:
        """Map a number of the unit interval to a value of DIGITS significant digits."""
        return self.rounded(_from_unit(unit, self.low, self.high, self.is_log))

    def rounded(self, value: float) -> float:
        """Round a value to DIGITS significant digits inside the interval."""
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


Dimension = Choice | Range | Interval


def space_of(overrides: Iterable[Override]) -> tuple[list[Dimension], list[str]]:
    """Split overrides into a search space and the texts of those with one value; the last override of a key counts.

    Raises:
        SettingsError: with every override that is not a valid set of values.
    """
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
    return space, [override.input_line for override in by_key.values() if not override.is_sweep_override()]


def grid_points(space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """Return every point of a space without intervals; the last dimension varies fastest."""
    columns = []
    for dimension in space:
        assert not isinstance(dimension, Interval), "an interval has no list of values"
        columns.append(dimension.values())
    keys = [dimension.key for dimension in space]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*columns)]


def size_of(space: Sequence[Dimension]) -> float:
    """Return the number of points; infinity if a dimension is an interval."""
    return math.prod(
        math.inf if isinstance(part, Interval) else part.count if isinstance(part, Range) else len(part.options)
        for part in space
    )


def as_overrides(point: dict[str, Value]) -> list[str]:
    """Convert a point to overrides, key=value."""
    return [f"{key}={format_value(value)}" for key, value in point.items()]


def format_value(value: Value) -> str:
    """Format a value for an override."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _dimension(override: Override) -> Dimension:
    """Convert a sweeping override to a dimension.

    Raises:
        SettingsError: it has no values, or its ends or its tag are invalid.
    """
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep, Sweep

    key, swept, where = override.get_key_element(), override.value(), override.input_line
    tags = set(swept.tags) if isinstance(swept, Sweep) else set()
    if not tags <= {"log"}:
        raise SettingsError(f"unknown tag {', '.join(sorted(tags - {'log'}))}", where=where, hint="log, or no tag")
    is_log = "log" in tags
    if isinstance(swept, IntervalSweep):
        _require_ends(swept.start, swept.end, is_log, where)
        if isinstance(swept.start, int) and isinstance(swept.end, int):
            return Range(key, swept.start, swept.end, 1, is_log)
        return Interval(key, float(swept.start), float(swept.end), is_log)
    if isinstance(swept, RangeSweep):
        values = sorted(_rounded(value) for value in swept.range())
        if len(values) > 1:
            step = _rounded(abs(swept.step))
            _require_ends(values[0], values[-1], is_log, where)
            if is_log and step != 1:
                raise SettingsError(f"a log scale has no steps of {step:g}", where=where, hint="no step, or no tag")
            return Range(key, values[0], values[-1], step, is_log)
        options = tuple(map(format_value, values))
    else:
        options = tuple(dict.fromkeys(swept_values(override)))
    if is_log:
        raise SettingsError("choices have no log scale", where=where, hint="tag(log,interval(LOW,HIGH))")
    return Choice(key, options)


def _require_ends(low: float, high: float, is_log: bool, where: str) -> None:
    if not low < high:
        found = f"the interval goes from {low:g} to {high:g}"
        raise SettingsError(found, where=where, hint="give the lower end first")
    if is_log and low <= 0:
        found = f"a log scale starts above 0, not at {low:g}"
        raise SettingsError(found, where=where, hint="a lower end above 0, or no tag")


def _rounded(value: Any) -> Any:
    """Remove the rounding errors of binary fractions from a float."""
    return value if isinstance(value, int) else round(float(value), 12)


def _to_unit(value: float, low: float, high: float, is_log: bool) -> float:
    if is_log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _from_unit(unit: float, low: float, high: float, is_log: bool) -> float:
    if is_log:
        low, high = math.log(low), math.log(high)
    value = low + unit * (high - low)
    return math.exp(value) if is_log else value
