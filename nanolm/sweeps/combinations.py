"""The combinations of values that a sweep asks for."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nanolm.compose import parse, to_hydra_syntax
from nanolm.compose.ranges import MOST_VALUES
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

    Args:
        overrides: overrides as typed, with one value or several.
        params: further settings and their values, as {key: "1,2,3"}.
        variants: lists of overrides by name.

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


def _values_by_key(parsed: Sequence[Override]) -> dict[str, list[str]]:
    """Return one override for each value of each key; a later override of a key replaces an earlier one.

    Raises:
        SettingsError: with every override that has no value or is a continuous range.
    """
    from hydra.core.global_hydra import GlobalHydra

    problems, found = [], {}
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    for override in parsed:
        override.config_loader = override.config_loader or loader
        if not override.is_sweep_override():
            found[override.key_or_group] = [override.input_line]
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            texts = [f"{key}={value}" for value in override.sweep_string_iterator()]
            found[override.key_or_group] = texts
            if not texts:
                problems.append(
                    SettingsError(
                        f"{override.input_line} has no values",
                        where=override.key_or_group,
                        hint="give at least one value, or leave the setting out",
                    )
                )
        else:
            problems.append(
                SettingsError(
                    f"{override.input_line} is a continuous range, which a grid cannot enumerate",
                    where=override.key_or_group,
                    hint="list the values, as in optimizer.lr=1e-3,3e-3, or use range(1,4) for integers",
                )
            )
    raise_all(problems)
    return found
