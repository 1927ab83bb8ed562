"""Pruners: which trials of a study to end early.

Each pruner is a function of the losses that trials have reported and of nothing else, so a decision that a kill
interrupted can be repeated.
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
    """Asynchronous successive halving, in brackets.

    Optuna's own pruner stores completed rungs in addition to the losses; a kill between the two writes changes what it
    decides.

    Args:
        rungs: steps at which trials compete; one in reduction_factor trials is promoted from each.
        brackets: the number of rungs that a trial skips at the start, by trial number modulo the length.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: int, brackets: Sequence[int]) -> None:
        self.rungs, self.reduction_factor, self.brackets = rungs, reduction_factor, brackets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        n_skipped = self._n_skipped(trial)
        others = [
            other.intermediate_values
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number and self._n_skipped(other) == n_skipped
        ]
        return is_eliminated(trial.intermediate_values, others, self.rungs[n_skipped:], self.reduction_factor)

    def _n_skipped(self, trial: FrozenTrial) -> int:
        return self.brackets[trial.number % len(self.brackets)]


def is_eliminated(
    losses: Mapping[int, float], others: Sequence[Mapping[int, float]], rungs: Sequence[int], reduction_factor: int
) -> bool:
    """Return whether a trial is eliminated at a rung that it reached with its last evaluation.

    It is promoted if its loss is among the best 1/reduction_factor of all trials that have reached the rung, itself
    included; while there are fewer than reduction_factor of them, only if no other is better.

    Args:
        losses: losses of the trial, by step.
        others: losses of the trials that it competes with.
    """
    last = max(losses)
    for rung in rungs:
        if rung > last or first_step_at(losses, rung) != last:
            continue
        reached = [other[step] for other in others if (step := first_step_at(other, rung)) is not None]
        n_better = sum(loss < losses[last] for loss in reached)
        if n_better >= max(1, (len(reached) + 1) // reduction_factor):
            return True
    return False


def first_step_at(losses: Mapping[int, float], rung: int) -> int | None:
    """Return the step of the first evaluation at or after a rung, or None."""
    return min((step for step in losses if step >= rung), default=None)


def rung_steps(min_steps: int, max_steps: int, reduction_factor: int) -> list[int]:
    """Return the steps at which trials compete: min_steps times powers of the factor, below max_steps."""
    count = math.ceil(round(math.log(max_steps / min_steps, reduction_factor), 9)) if min_steps < max_steps else 0
    return [min_steps * reduction_factor**n for n in range(count)]


def bracket_cycle(n_brackets: int, reduction_factor: int) -> list[int]:
    """Return the bracket of each trial number in one cycle; brackets have Hyperband's shares, evenly spread."""
    shares = [
        math.ceil(n_brackets * reduction_factor ** (n_brackets - 1 - skipped) / (n_brackets - skipped))
        for skipped in range(n_brackets)
    ]
    places = [((n + 0.5) / share, skipped) for skipped, share in enumerate(shares) for n in range(share)]
    return [skipped for _, skipped in sorted(places)]


def first_rung(settings: OptunaConfig, max_steps: int) -> int:
    """Return hydra.sweeper.min_steps, or else the step that leaves two rungs below max_steps."""
    return settings.min_steps or max(1, math.ceil(max_steps / settings.reduction_factor**2))


def _halving(settings: OptunaConfig, max_steps: int, has_brackets: bool) -> BasePruner:
    factor = settings.reduction_factor
    rungs = rung_steps(first_rung(settings, max_steps), max_steps, factor)
    return SuccessiveHalving(rungs, factor, bracket_cycle(len(rungs) + 1, factor) if has_brackets else (0,))


PRUNERS: dict[str, Callable[[OptunaConfig, int], BasePruner]] = {
    # Every trial is trained to its end.
    "none": lambda settings, max_steps: NopPruner(),
    # Li et al. 2020, arXiv:1810.05934, in the variant that stops trials.
    "asha": lambda settings, max_steps: _halving(settings, max_steps, has_brackets=False),
    # Li et al. 2018, arXiv:1603.06560, as ASHA in brackets; each bracket skips one rung more.
    "hyperband": lambda settings, max_steps: _halving(settings, max_steps, has_brackets=True),
    # Prunes a trial whose best loss is worse than the median of the completed trials at the same step.
    "median": lambda settings, max_steps: MedianPruner(
        n_startup_trials=settings.median_startup_trials, n_warmup_steps=first_rung(settings, max_steps)
    ),
}
