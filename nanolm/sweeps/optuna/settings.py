"""The settings of the optuna sweeper, hydra.sweeper.KEY, and their checks, without importing Optuna."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from nanolm.compose.overrides import MOST_VALUES
from nanolm.config.budget import budget_of
from nanolm.config.fields import Role, Trait, outside_bounds, setting
from nanolm.config.roles import has_trait
from nanolm.config.trainer import TrainerConfig
from nanolm.errors import NanolmError, SettingsError, install_hint, nearest
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, format_value, size_of

SAMPLER_NAMES = ("tpe", "random", "grid", "cmaes")
PRUNER_NAMES = ("none", "asha", "hyperband", "median")

# Number of trials if neither the command line nor a grid determines it.
DEFAULT_TRIALS = 20


@dataclasses.dataclass
class OptunaConfig:
    """Settings of hydra/sweeper=optuna. Experiment settings decide which trials are drawn and pruned."""

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
    max_running: int | None = setting(
        None,
        doc="Trials at a time, with a launcher that runs several. null: as many as it runs.",
        role=Role.runtime,
        ge=1,
    )
    seed: int = setting(1337, doc="Seed of the sampler. It draws the same trials if they run one after another.", ge=0)
    reduction_factor: int = setting(
        4,
        doc="asha and hyperband: one in this many trials is promoted from a rung; also the ratio of successive rungs.",
        ge=2,
    )
    min_steps: int | None = setting(
        None,
        doc="No trial is pruned before this step; asha's first rung. null: max_steps / reduction_factor ** 2.",
        ge=1,
    )
    median_startup_trials: int = setting(5, doc="median: number of complete trials before the first is pruned.", ge=1)
    tpe_startup_trials: int = setting(10, doc="tpe: number of random trials at the start.", ge=1)
    params: dict[str, Any] | None = setting(
        None,
        doc='More of the search space, for files: {optimizer.lr: "tag(log,interval(1e-4,1e-2))"}.',
        role=Role.runtime,
    )
    fail_fast: bool = setting(
        False, doc="Start no trial after a failed one; on the command line, sweep.fail_fast.", role=Role.runtime
    )

    max_hours: float | None = setting(
        None,
        doc="Start no trial after this many hours; on the command line, sweep.max_hours. null: no limit.",
        role=Role.runtime,
        gt=0,
    )

    @property
    def prunes(self) -> bool:
        """Whether trials may be pruned."""
        return self.pruner != "none"


def n_trials_of(settings: OptunaConfig, space: Sequence[Dimension]) -> int:
    """Return the total number of trials of a study."""
    if settings.sampler != "grid":
        return settings.n_trials or DEFAULT_TRIALS
    points = int(size_of(space))
    return min(settings.n_trials or points, points)


def check_settings(settings: OptunaConfig, space: Sequence[Dimension]) -> list[NanolmError]:
    """Return the problems of a study that its settings and its search space show."""
    found: list[tuple[str, str, str]] = []
    for kind, names in (("sampler", SAMPLER_NAMES), ("pruner", PRUNER_NAMES)):
        name = getattr(settings, kind)
        if name not in names:
            found.append((f"unknown {kind} {name!r}", f"hydra.sweeper.{kind}", nearest(name, names)))
    if not space:
        hint = "give a setting several values: model=gpt,gpt2 or 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        found.append(("no setting varies", "the command line", hint))
    if settings.sampler == "grid" and MOST_VALUES < size_of(space) < math.inf:
        problem = f"a grid of {size_of(space):,} points is too large, the limit is {MOST_VALUES:,}"
        found.append((problem, "hydra.sweeper.sampler", "fewer values, or hydra.sweeper.sampler=random"))
    for dimension in space:
        found += _unsupported(settings, dimension)
    problems = [SettingsError(problem, where=where, hint=hint) for problem, where, hint in found]
    return [*outside_bounds(settings, "hydra.sweeper."), *problems]


def check_length(settings: OptunaConfig, trainer: TrainerConfig) -> list[NanolmError]:
    """Return the problem of a pruner that starts after the last step of a trial, or of trials without a common one."""
    max_steps = trainer.max_steps
    if not settings.prunes or (max_steps is not None and (settings.min_steps or 0) < max_steps):
        return []
    if max_steps is None:
        return [
            SettingsError(
                f"a pruner compares trials at the same steps, and with {budget_of(trainer)} each has its own number",
                where="hydra.sweeper.pruner",
                hint="trainer.max_steps=1000 for all trials, or hydra.sweeper.pruner=none",
            )
        ]
    return [
        SettingsError(
            f"min_steps is {settings.min_steps} and trials have {max_steps} steps: none would be pruned",
            where="hydra.sweeper.min_steps",
            hint="fewer, or hydra.sweeper.pruner=none",
        )
    ]


def require_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        SettingsError: it is not; the hint says what to install.
    """
    missing = [name for name in ("optuna", "cmaes") if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            where="hydra/sweeper=optuna",
            hint=install_hint("optuna"),
        )


def _unsupported(settings: OptunaConfig, dimension: Dimension) -> list[tuple[str, str, str]]:
    """Return the reasons why the sampler or the pruner cannot vary a setting, as (found, where, hint)."""
    key = dimension.key.lstrip("+")
    problems: list[tuple[str, str, str]] = []
    if settings.sampler == "cmaes" and isinstance(dimension, Choice):
        found = f"CMA-ES varies numbers, and {', '.join(dimension.options)} are choices"
        problems.append((found, key, f"hydra.sweeper.sampler=tpe, or {_as_interval(dimension)}"))
    if settings.sampler == "grid" and isinstance(dimension, Interval):
        ends = f"{format_value(dimension.low)},{format_value(dimension.high)}"
        hint = f"{key}={ends} for its ends, or hydra.sweeper.sampler=tpe"
        problems.append((f"a grid cannot enumerate interval({ends})", key, hint))
    if has_trait(key, Trait.loss_unit):
        hint = "-m without hydra/sweeper=optuna runs them all; `nanolm compare` shows their bits per byte"
        problems.append(("losses on different tokens do not compare, and a study minimises the loss", key, hint))
    if settings.prunes and has_trait(key, Trait.horizon):
        hint = "give one value for all trials, or hydra.sweeper.pruner=none"
        problems.append(("a pruner compares trials of the same length at the same steps", key, hint))
    return problems


def _as_interval(choice: Choice) -> str:
    """Return the override that makes an interval of numeric choices."""
    try:
        values = [float(option) for option in choice.options]
    except ValueError:
        return "leave it out"
    ends = f"interval({format_value(min(values))},{format_value(max(values))})"
    return f"{choice.key}=int({ends})" if all(map(str.isdecimal, choice.options)) else f"{choice.key}={ends}"
