"""Checks of a study before the first trial, on points of its search space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanolm.compose import compose_jobs
from nanolm.config.checks import check
from nanolm.config.fields import Trait, flat, outside_bounds
from nanolm.config.roles import has_trait, is_resumable
from nanolm.config.run import Config
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.sweeps.optuna.settings import OptunaConfig, check_length
from nanolm.sweeps.optuna.space import Dimension, Interval, Range, Value, as_overrides, grid_points, size_of

# A space of at most this many points is checked at every point; a larger one at its edges.
MAX_POINTS = 256


def check_points(
    settings: OptunaConfig,
    space: Sequence[Dimension],
    fixed: Sequence[str],
    config_sources: tuple[str | None, Sequence[str]],
) -> Config:
    """Compose points of a space before any is trained, and return the settings of a valid one.

    Values that do not fit together are left to the search, which skips such trials.

    Args:
        fixed: overrides that all trials share.
        config_sources: where options are found, as in `compose_jobs`.

    Raises:
        SettingsError: a value is invalid on its own, or no point is valid.
    """

    def out_of_bounds(config: Config) -> list[NanolmError]:
        return list(outside_bounds(config))

    points = [[*fixed, *as_overrides(point)] for point in probes(space)]
    (job,) = compose_jobs(points[:1], *config_sources, problems_of=out_of_bounds)
    first, known = job.config, flat(job.config)
    not_integers = [
        SettingsError(
            f"{dimension.key} is an integer, and an interval has other numbers",
            where=dimension.key,
            hint=f"{dimension.key}=int(interval({dimension.low:g},{dimension.high:g}))",
        )
        for dimension in space
        if isinstance(dimension, Interval) and type(known.get(dimension.key.lstrip("+"))) is int
    ]
    raise_all([*not_integers, *check_length(settings, first.trainer)])
    configs = [job.config for job in compose_jobs(points, *config_sources, problems_of=out_of_bounds)]
    problems = [{problem.found: problem for problem in check(config)} for config in configs]
    # A problem of every point is not due to the values that are searched.
    raise_all([problem for text, problem in problems[0].items() if all(text in others for others in problems)])
    if len(points) == size_of(space) and all(problems):
        raise_all(list({text: problem for found in problems for text, problem in found.items()}.values()))
    return next((config for config, found in zip(configs, problems, strict=True) if not found), first)


def probes(space: Sequence[Dimension]) -> list[dict[str, Value]]:
    """Return the points at which to check a space: all of a small one, or one for each edge of each dimension."""
    if size_of(space) <= MAX_POINTS:
        return grid_points(space)
    edges = {dimension.key: _edges(dimension) for dimension in space}
    base = {key: values[0] for key, values in edges.items()}
    return [base, *({**base, key: value} for key, values in edges.items() for value in values[1:])]


def _edges(dimension: Dimension) -> list[Value]:
    if isinstance(dimension, Interval):
        # A number between the ends that is not an integer, which a setting may refuse.
        return [dimension.low, dimension.high, dimension.from_unit(0.382)]
    return [dimension.low, dimension.high] if isinstance(dimension, Range) else dimension.values()


def shared_settings(config: Config) -> dict[str, Any]:
    """Return the settings that the trials of a study share and that affect their losses, by key."""
    return {
        key: value
        for key, value in flat(config).items()
        if has_trait(key, Trait.horizon) or key.endswith("path") or not is_resumable(key, config.scheduler.name)
    }
