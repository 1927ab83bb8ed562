"""The combinations of values that a sweep asks for."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nanolm.compose import parse, to_hydra_syntax
from nanolm.compose.overrides import MOST_VALUES
from nanolm.errors import SettingsError, raise_all
from nanolm.json_text import dump_json

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


@dataclasses.dataclass(frozen=True)
class Combination:
    """The overrides of one job.

    Attributes:
        overrides: overrides as typed, each with one value.
        swept: the settings in which the jobs of the sweep differ, as {key: value} for people to read.
    """

    overrides: tuple[str, ...]
    swept: dict[str, str]


def combinations(
    overrides: Sequence[str],
    params: Mapping[str, str] | None = None,
    variants: Mapping[str, Sequence[str]] | None = None,
) -> list[Combination]:
    """Return every combination of the values on the command line, in a sweep's params, and in its variants.

    Where two of them set the same key, the command line takes precedence over a variant, and a variant over params.

    Raises:
        SettingsError: with every override that is invalid or is a continuous range; or there are too many combinations.
    """
    lowest = _values_by_key(
        parse(to_hydra_syntax([f"{key}={value}" for key, value in (params or {}).items()], multirun=True))
    )
    highest = _values_by_key(parse(overrides))
    by_variant = {
        name: {**lowest, **_values_by_key(parse(to_hydra_syntax(own))), **highest}
        for name, own in (variants or {"": ()}).items()
    }
    n_jobs = sum(math.prod(map(len, values.values())) for values in by_variant.values())
    if n_jobs > MOST_VALUES:
        raise SettingsError(
            f"the values combine to {n_jobs:,} jobs, more than {MOST_VALUES:,}",
            where=", ".join(dict.fromkeys(key for each in by_variant.values() for key in each if len(each[key]) > 1)),
            hint="give fewer values, or let a study try some of the combinations: hydra/sweeper=optuna",
        )
    found: list[Combination] = []
    for name, values in by_variant.items():
        swept_keys = sorted(key for key, texts in values.items() if len(texts) > 1)
        for texts in itertools.product(*values.values()):
            chosen = dict(zip(values, texts, strict=True))
            swept = {"variant": name} if name else {}
            swept |= {key: display_value(chosen[key]) for key in swept_keys}
            found.append(Combination(tuple(texts), swept))
    return found


def display_value(override: str) -> str:
    """Return the value of an override for people to read, the same however it was typed: 1e-3 and 0.001 are equal."""
    (parsed,) = parse([override])
    value = parsed.value()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if isinstance(value, str) else dump_json(value, default=str)


def swept_values(override: Override) -> list[str]:
    """Return the values of an override that is a discrete sweep, as text.

    Raises:
        SettingsError: it has none, such as glob(x*) in a group without such an option.
    """
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        # glob(*) asks the loader for the options of a group.
        override.config_loader = GlobalHydra.instance().config_loader()
    values = list(override.sweep_string_iterator())
    if not values:
        raise SettingsError(
            f"{override.input_line} has no values",
            where=override.key_or_group,
            hint="give at least one value, or leave the setting out",
        )
    return values


def _values_by_key(parsed: Sequence[Override]) -> dict[str, list[str]]:
    """Return one override for each value of each key; a later override of a key replaces an earlier one.

    Raises:
        SettingsError: with every override that has no value or is a continuous range.
    """
    problems, found = [], {}
    for override in parsed:
        try:
            found[override.key_or_group] = _expand(override)
        except SettingsError as error:
            problems.append(error)
    raise_all(problems)
    return found


def _expand(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.input_line]
    if not override.is_discrete_sweep():
        raise SettingsError(
            f"{override.input_line} is a continuous range, which a grid cannot enumerate",
            where=override.key_or_group,
            hint="list the values, as in optimizer.lr=1e-3,3e-3, or use range(1,4) for integers",
        )
    return [f"{override.get_key_element()}={value}" for value in swept_values(override)]
