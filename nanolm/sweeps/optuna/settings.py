"""The settings of the optuna sweeper, hydra.sweeper.KEY, and what can be wrong with them; Optuna is not imported."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from nanolm.compose.ranges import MOST_VALUES
from nanolm.config.fields import Role, Trait, outside_bounds, setting
from nanolm.config.roles import has_trait
from nanolm.errors import NanolmError, SettingsError, install_hint, nearest
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, in_word, size_of

SAMPLER_NAMES = ("tpe", "random", "grid", "cmaes")
PRUNER_NAMES = ("none", "asha", "hyperband", "median")

# How many trials where neither the line nor a grid says it.
DEFAULT_TRIALS = 20


@dataclasses.dataclass
class OptunaConfig:
    """Settings of hydra/sweeper=optuna. Experiment settings decide which trials are drawn and pruned."""

    _target_: str = setting(
        "hydra_plugins.nanolm_sweepers.OptunaSweeper", doc="The sweeper's class, for Hydra.", role=Role.runtime
    )
    sampler: str = setting(
        "tpe", doc="tpe, random, grid (choices and ranges, each point once) or cmaes (numbers only)."
    )
    pruner: str = setting("none", doc="none, asha, hyperband or median.")
    n_trials: int | None = setting(
        None,
        doc="Number of trials of the study; a larger one continues it. null: every point of a grid, else 20.",
        role=Role.runtime,
        ge=1,
    )
    max_batch_size: int | None = setting(
        None,
        doc="Trials that are drawn and run at a time. null: the number of jobs of the launcher, or 1.",
        role=Role.runtime,
        ge=1,
    )
    seed: int = setting(1337, doc="Seed of the sampler. It draws the same trials if they run one after another.", ge=0)
    reduction_factor: int = setting(
        4,
        doc="asha and hyperband: one of this many trials continues past a rung; also the ratio of successive rungs.",
        ge=2,
    )
    min_steps: int | None = setting(
        None,
        doc="No trial is pruned before this step; asha's first rung. null: max_steps / reduction_factor ** 2.",
        ge=1,
    )
    median_after: int = setting(5, doc="median: number of complete trials before the first is pruned.", ge=1)
    tpe_after: int = setting(10, doc="tpe: number of random trials at the start.", ge=1)
    params: dict[str, Any] | None = setting(
        None,
        doc='More of the search space, for files: {optimizer.lr: "tag(log,interval(1e-4,1e-2))"}.',
        role=Role.runtime,
    )
    fail_fast: bool = setting(
        False, doc="Start no trial after a failed one; on the command line, sweep.fail_fast.", role=Role.runtime
    )

    @property
    def prunes(self) -> bool:
        """Whether trials may be given up."""
        return self.pruner != "none"


def n_trials_of(settings: OptunaConfig, space: Sequence[Dimension]) -> int:
    """How many trials the study has in all."""
    if settings.sampler != "grid":
        return settings.n_trials or DEFAULT_TRIALS
    points = int(size_of(space))
    return min(settings.n_trials or points, points)


def check_settings(settings: OptunaConfig, space: Sequence[Dimension]) -> list[NanolmError]:
    """Everything that is wrong with a study, as far as its own settings and what it lets vary tell."""
    problems: list[NanolmError] = list(outside_bounds(settings, "hydra.sweeper."))
    for what, names in (("sampler", SAMPLER_NAMES), ("pruner", PRUNER_NAMES)):
        name = getattr(settings, what)
        if name not in names:
            problems.append(
                SettingsError(f"there is no {what} {name!r}", where=f"hydra.sweeper.{what}", hint=nearest(name, names))
            )
    if not space:
        problems.append(
            SettingsError(
                "nothing is left to choose",
                where="the command line",
                hint="give a setting several values: model=gpt,gpt2 or 'optimizer.lr=tag(log,interval(1e-4,1e-2))'",
            )
        )
    if settings.sampler == "grid" and MOST_VALUES < size_of(space) < math.inf:
        problems.append(
            SettingsError(
                f"a grid of {size_of(space):,} points is too large, at most {MOST_VALUES:,} are tried",
                where="hydra.sweeper.sampler",
                hint="fewer values, or hydra.sweeper.sampler=random",
            )
        )
    for dimension in space:
        problems += _misfits(settings, dimension)
    return problems


def check_length(settings: OptunaConfig, max_steps: int) -> list[NanolmError]:
    """What is wrong with a study of trials that have so many steps."""
    if not settings.prunes or (settings.min_steps or 0) < max_steps:
        return []
    return [
        SettingsError(
            f"it is {settings.min_steps}, and a trial has {max_steps} steps: none would be given up",
            where="hydra.sweeper.min_steps",
            hint="fewer, or hydra.sweeper.pruner=none",
        )
    ]


def require_optuna() -> None:
    """Raises a SettingsError that says what to install where Optuna is not."""
    missing = [name for name in ("optuna", "cmaes") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            where="hydra/sweeper=optuna",
            hint=install_hint("optuna"),
        )


def _misfits(settings: OptunaConfig, dimension: Dimension) -> list[NanolmError]:
    """What a dimension has that the sampler or the pruner cannot do."""
    problems: list[NanolmError] = []
    key = dimension.key.lstrip("+")
    if settings.sampler == "cmaes" and isinstance(dimension, Choice):
        problems.append(
            SettingsError(
                f"CMA-ES varies numbers, and {', '.join(dimension.words)} are words to it",
                where=key,
                hint=f"hydra.sweeper.sampler=tpe, or {_as_interval(dimension)}",
            )
        )
    if settings.sampler == "grid" and isinstance(dimension, Interval):
        ends = f"{in_word(dimension.low)},{in_word(dimension.high)}"
        problems.append(
            SettingsError(
                f"a grid has no points in interval({ends})",
                where=key,
                hint=f"{key}={ends} for its ends, or hydra.sweeper.sampler=tpe",
            )
        )
    if has_trait(key, Trait.loss_unit):
        problems.append(
            SettingsError(
                "losses on other tokens do not compare, and a study looks for the least",
                where=key,
                hint="-m without hydra/sweeper=optuna runs them all; `nanolm compare` shows their bits per byte",
            )
        )
    if settings.prunes and has_trait(key, Trait.horizon):
        problems.append(
            SettingsError(
                "a pruner compares trials at the same steps of the same length",
                where=key,
                hint="one value for all, or hydra.sweeper.pruner=none",
            )
        )
    return problems


def _as_interval(choice: Choice) -> str:
    """An interval in place of words, where they are numbers."""
    try:
        values = [float(word) for word in choice.words]
    except ValueError:
        return "leave it out"
    ends = f"interval({in_word(min(values))},{in_word(max(values))})"
    return f"{choice.key}=int({ends})" if all(word.isdecimal() for word in choice.words) else f"{choice.key}={ends}"
