"""The operations of a study's journal, with the fields that each must and may have."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import TrialState

from nanolm.json_text import is_finite_number
from nanolm.sweeps.optuna.samplers import FAILED

# User attributes of a trial: the sweeper that runs it, and the folder of its run.
OWNER = "owner"
FOLDER = "folder"
# Why the settings of a trial do not fit together. Such a trial is over and does not count towards n_trials.
IMPOSSIBLE = "impossible"
# The last step at which the pruner kept a trial, and the step at which it pruned it.
KEPT = "kept_at_step"
PRUNED = "pruned_at_step"

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    """Return whether a value is a number as Optuna writes it, infinity and NaN included."""
    return isinstance(value, float) or is_finite_number(value)


def _is_optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_map_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _is_step(value: Any) -> bool:
    return value is None or is_count(value)


def _is_time(value: Any) -> bool:
    try:
        datetime.datetime.fromisoformat(value).astimezone()
    except (TypeError, ValueError, ArithmeticError, OSError):
        return False
    return True


def _is_distribution(value: Any) -> bool:
    try:
        return isinstance(value, str) and _distribution(value) is not None
    except Exception:
        # Optuna's classes raise errors of many types for wrong attributes.
        return False


@functools.lru_cache(maxsize=256)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _is_state(value: Any) -> bool:
    return is_count(value) and value in {state.value for state in TrialState}


# Attributes that nanolm reads. A folder is a name in the sweep's directory; an owner is a part of a file's name.
ATTRIBUTES: dict[str, Check] = {
    OWNER: lambda value: is_text(value) and re.fullmatch(r"[\w-]{1,64}", value) is not None,
    FOLDER: lambda value: is_text(value) and re.fullmatch(r"[^/\\\0]{1,255}", value) is not None and value[0] != ".",
    IMPOSSIBLE: is_text,
    FAILED: is_text,
    KEPT: _is_step,
    PRUNED: _is_step,
}


def _is_user_attribute(value: Any) -> bool:
    return _is_attribute(value) and all(check(value[key]) for key, check in ATTRIBUTES.items() if key in value)


def _is_attribute(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1


# The operations of a journal by their codes: the required fields and the optional ones.
_STUDY = {"study_id": is_count}
_TRIAL = {"trial_id": is_count}
_NO_FIELDS: dict[str, Check] = {}
OPERATIONS: dict[int, tuple[Mapping[str, Check], Mapping[str, Check]]] = {
    0: ({"study_name": is_text, "directions": _is_list_of(lambda value: is_count(value) and value <= 2)}, _NO_FIELDS),
    1: (_STUDY, _NO_FIELDS),
    2: ({**_STUDY, "user_attr": _is_attribute}, _NO_FIELDS),
    3: ({**_STUDY, "system_attr": _is_attribute}, _NO_FIELDS),
    4: (
        {**_STUDY, "datetime_start": _is_optional(_is_time)},
        {
            "distributions": _is_map_of(_is_distribution),
            "params": _is_map_of(_is_number),
            "datetime_complete": _is_time,
            "state": _is_state,
            "user_attrs": lambda value: (
                isinstance(value, dict) and all(_is_user_attribute({key: value[key]}) for key in value)
            ),
            "system_attrs": lambda value: isinstance(value, dict),
            "value": _is_optional(_is_number),
            "values": _is_optional(_is_list_of(_is_number)),
            "intermediate_values": lambda value: (
                _is_map_of(_is_number)(value) and all(re.fullmatch(r"\d{1,18}", step) for step in value)
            ),
        },
    ),
    5: (
        {**_TRIAL, "param_name": is_text, "param_value_internal": _is_number, "distribution": _is_distribution},
        _NO_FIELDS,
    ),
    6: (
        {**_TRIAL, "state": _is_state, "values": _is_optional(_is_list_of(_is_number))},
        {"datetime_start": _is_time, "datetime_complete": _is_time},
    ),
    7: ({**_TRIAL, "step": is_count, "intermediate_value": _is_number}, _NO_FIELDS),
    8: ({**_TRIAL, "user_attr": _is_user_attribute}, _NO_FIELDS),
    9: ({**_TRIAL, "system_attr": _is_attribute}, _NO_FIELDS),
    10: (_NO_FIELDS, _NO_FIELDS),
}


def contains(distribution: str, value: float) -> bool:
    try:
        return _distribution(distribution)._contains(value)
    except (ValueError, TypeError, ArithmeticError):
        return False
