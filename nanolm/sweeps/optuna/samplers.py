"""Samplers: the settings of the next trial.

Every draw is seeded by the sampler's seed and the trial's number, and depends otherwise only on the results of earlier
trials: a study that was killed continues with the trials that it would have had.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Value, grid_points

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from nanolm.sweeps.optuna.settings import OptunaConfig

# User attribute of a trial whose run failed: it stays open for another attempt, and counts as the worst of its
# generation.
FAILED = "failed"


def distribution_of(dimension: Dimension) -> BaseDistribution:
    """Convert a dimension to Optuna's distribution."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.options)
    if isinstance(dimension, Interval):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)
    if dimension.is_integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log, step=int(dimension.step))
    return FloatDistribution(dimension.low, dimension.high, step=dimension.step)


def derive_seed(*parts: object) -> int:
    """Return a 32-bit seed that depends on the repr of all parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


class SeededSampler(BaseSampler):
    """One of Optuna's samplers, built anew from a seed for each draw; floats are rounded as in a folder's name."""

    def __init__(self, build: Callable[[int], BaseSampler], seed: int, space: Sequence[Dimension]) -> None:
        self._build, self._seed = build, seed
        self._intervals = {dimension.key: dimension for dimension in space if isinstance(dimension, Interval)}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler(trial, "").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        drawn = self._sampler(trial, "").sample_relative(study, trial, search_space)
        return {key: self._rounded(key, value) for key, value in drawn.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        sampler = self._sampler(trial, param_name)
        return self._rounded(param_name, sampler.sample_independent(study, trial, param_name, param_distribution))

    def _sampler(self, trial: FrozenTrial, key: str) -> BaseSampler:
        return self._build(derive_seed(self._seed, trial.number, key))

    def _rounded(self, key: str, value: Any) -> Any:
        return self._intervals[key].rounded(value) if key in self._intervals else value


class PointSampler(BaseSampler):
    """A sampler that returns all values of a trial at once, as a function of its number."""

    def __init__(self, point: Callable[[Study, int], dict[str, Value]], space: Sequence[Dimension]) -> None:
        self._point, self._space = point, space

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {dimension.key: distribution_of(dimension) for dimension in self._space}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._point(study, trial.number)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise AssertionError(f"{param_name} is part of every point")


def cmaes_point(study: Study, number: int, space: Sequence[Dimension], seed: int) -> dict[str, Value]:
    """Draw the values of a trial by CMA-ES (Hansen 2016, arXiv:1604.00772).

    Trials number k * population to (k + 1) * population - 1 are a generation. The search is replayed over all
    completed generations, so that nothing but trials and their losses needs to be stored.
    """
    import numpy as np
    from cmaes import CMA

    numeric = [dimension for dimension in space if not isinstance(dimension, Choice)]
    assert len(numeric) == len(space), "CMA-ES varies numbers"
    n = len(numeric)
    search = CMA(mean=np.full(n, 0.5), sigma=1 / 6, bounds=np.tile([0.0, 1.0], (n, 1)), seed=derive_seed(seed, number))
    size = search.population_size
    earlier = study.get_trials(deepcopy=False)[:number]
    for start in range(0, number - size + 1, size):
        generation = earlier[start : start + size]
        if not all(trial.state.is_finished() or trial.user_attrs.get(FAILED) for trial in generation):
            break
        search.tell(
            [
                (
                    np.array([dimension.to_unit(float(trial.params[dimension.key])) for dimension in numeric]),
                    math.inf if trial.value is None else trial.value,
                )
                for trial in generation
            ]
        )
    drawn = search.ask()
    return {dimension.key: dimension.from_unit(float(unit)) for dimension, unit in zip(numeric, drawn, strict=True)}


def shuffled_grid(space: Sequence[Dimension], seed: int) -> list[dict[str, Value]]:
    """Return all points in a random order: pruners compare a trial with earlier ones, and neighbours are alike."""
    points = grid_points(space)
    random.Random(derive_seed(seed)).shuffle(points)
    return points


def _grid(settings: OptunaConfig, space: Sequence[Dimension]) -> BaseSampler:
    points = shuffled_grid(space, settings.seed)
    return PointSampler(lambda study, number: points[number], space)


SAMPLERS: dict[str, Callable[[OptunaConfig, Sequence[Dimension]], BaseSampler]] = {
    # The tree-structured Parzen estimator (Watanabe 2023, arXiv:2304.11127).
    "tpe": lambda settings, space: SeededSampler(
        # The constant liar keeps trials that run at the same time apart.
        lambda seed: TPESampler(seed=seed, n_startup_trials=settings.tpe_startup_trials, constant_liar=True),
        settings.seed,
        space,
    ),
    # Uniform, or uniform in the logarithm.
    "random": lambda settings, space: SeededSampler(lambda seed: RandomSampler(seed=seed), settings.seed, space),
    # Every point once, in a random order.
    "grid": _grid,
    # Only for numbers.
    "cmaes": lambda settings, space: PointSampler(
        lambda study, number: cmaes_point(study, number, space, settings.seed), space
    ),
}
