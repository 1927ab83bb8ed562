"""Check that a range or an interval of a sweep is finite, before it is expanded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolm.errors import SettingsError
from nanolm.json_text import is_finite_number

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Each value of a range and each job of a grid is composed before the sweep starts, in a few milliseconds.
MOST_VALUES = 10_000


def wrong_range(override: Override) -> SettingsError | None:
    """Return what is wrong with the ends, the step or the length of a range or an interval, if it is one."""
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep

    swept, text = override.value(), override.input_line or ""
    if isinstance(swept, IntervalSweep):
        return _wrong([swept.start, swept.end], None, text, override.key_or_group)
    if isinstance(swept, RangeSweep):
        return _wrong([swept.start, swept.stop], 1 if swept.step is None else swept.step, text, override.key_or_group)
    return None


def _wrong(ends: list[float | None], step: float | None, text: str, key: str) -> SettingsError | None:
    low, high = (0 if end is None else end for end in ends)
    example = "interval(0.1,0.3)" if step is None else "range(1,9,2)"
    if not all(is_finite_number(number) for number in (low, high, step or 0)):
        return SettingsError(f"{text} is not finite", where=key, hint=f"give finite numbers, as in {example}")
    if step is None:
        return None
    if step == 0:
        return SettingsError(
            f"{text} has a step of 0 and would never end",
            where=key,
            hint="use a step other than 0, as in range(0.1,0.3,0.1); the third number is the step, not a count",
        )
    # No division: the quotient of integers may be too large for a float.
    if (high - low) * (1 if step > 0 else -1) > MOST_VALUES * abs(step):
        return SettingsError(
            f"{text} has more than {MOST_VALUES:,} values",
            where=key,
            hint="use a larger step, or list the values: 1e-3,3e-3; a study samples interval(LOW,HIGH) or "
            "int(interval(LOW,HIGH))",
        )
    if (high - low) * step <= 0:
        return SettingsError(
            f"{text} has no value in it",
            where=key,
            hint="range(START,STOP,STEP) leaves STOP out; it counts down only with a negative STEP",
        )
    return None
