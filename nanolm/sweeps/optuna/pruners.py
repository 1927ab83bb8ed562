"""When a trial is given up.

Each pruner is a function of the losses that trials have reported, and of nothing else: what a kill cut short can be
decided again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner, MedianPruner, NopPruner

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from nanolm.sweeps.optuna.settings import OptunaConfig


class SuccessiveHalving(BasePruner):
    """Trials compete at rungs, in brackets; `brackets` says of each trial number how many of the first rungs it skips.

    Optuna's own keeps marks of the rungs beside the losses; a kill between the two writes changes what it decides.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: int, brackets: Sequence[int] = (0,)) -> None:
        self.rungs, self.reduction_factor, self.brackets = rungs, reduction_factor, brackets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        skipped = self._skipped(trial)
        others = [
            other.intermediate_values
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and self._skipped(other) == skipped
        ]
        return is_behind(trial.intermediate_values, others, self.rungs[skipped:], self.reduction_factor)

    def _skipped(self, trial: FrozenTrial) -> int:
        return self.brackets[trial.number % len(self.brackets)]


def is_behind(
    losses: Mapping[int, float], others: Sequence[Mapping[int, float]], rungs: Sequence[int], reduction_factor: int
) -> bool:
    """Whether a trial loses at a rung that its last evaluation was the first to reach.

    It goes on if its loss is among the best 1/reduction_factor of all that have come to the rung so far, itself
    counted; while there are fewer than reduction_factor, if none is better.

    Args:
        losses: of the trial, by step.
        others: those of the trials that it competes with.
        rungs: steps at which is decided.
        reduction_factor: one in so many goes on.
    """
    last = max(losses)
    for rung in rungs:
        if rung > last or first_at(losses, rung) != last:
            continue
        better = there = 0
        for other in others:
            step = first_at(other, rung)
            if step is not None:
                there += 1
                better += other[step] < losses[last]
        if better >= max(1, (there + 1) // reduction_factor):
            return True
    return False


def first_at(losses: Mapping[int, float], rung: int) -> int | None:
    """The step of the first evaluation at a rung or behind it; None before that."""
    return min((step for step in losses if step >= rung), default=None)


def rungs_of(min_steps: int, max_steps: int, reduction_factor: int) -> list[int]:
    """Steps at which trials compete: min_steps and its multiples by powers of the factor, below max_steps."""
    count = math.ceil(round(math.log(max_steps / min_steps, reduction_factor), 9)) if min_steps < max_steps else 0
    return [min_steps * reduction_factor**n for n in range(count)]


def bracket_cycle(n_brackets: int, reduction_factor: int) -> list[int]:
    """The bracket of each trial number, to be repeated; each has its share of Hyperband's trials, spread out."""
    shares = [
        math.ceil(n_brackets * reduction_factor ** (n_brackets - 1 - skipped) / (n_brackets - skipped))
        for skipped in range(n_brackets)
    ]
    places = [((n + 0.5) / share, skipped) for skipped, share in enumerate(shares) for n in range(share)]
    return [skipped for _, skipped in sorted(places)]


def first_rung(settings: OptunaConfig, max_steps: int) -> int:
    """hydra.sweeper.min_steps, or what leaves room for two rungs below max_steps."""
    return settings.min_steps or max(1, math.ceil(max_steps / settings.reduction_factor**2))


def _asha(settings: OptunaConfig, max_steps: int) -> BasePruner:
    factor = settings.reduction_factor
    return SuccessiveHalving(rungs_of(first_rung(settings, max_steps), max_steps, factor), factor)


def _hyperband(settings: OptunaConfig, max_steps: int) -> BasePruner:
    factor = settings.reduction_factor
    rungs = rungs_of(first_rung(settings, max_steps), max_steps, factor)
    return SuccessiveHalving(rungs, factor, bracket_cycle(len(rungs) + 1, factor))


def _median(settings: OptunaConfig, max_steps: int) -> BasePruner:
    return MedianPruner(n_startup_trials=settings.median_after, n_warmup_steps=first_rung(settings, max_steps))


# none: every trial trains to its end.
# asha: Li et al. 2020, arXiv:1810.05934, by stopping.
# hyperband: Li et al. 2018, arXiv:1603.06560, as ASHA in brackets; each skips one rung more than the one before.
# median: worse at its best than the median of the completed trials at the same step.
PRUNERS: dict[str, Callable[[OptunaConfig, int], BasePruner]] = {
    "none": lambda settings, max_steps: NopPruner(),
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
}
