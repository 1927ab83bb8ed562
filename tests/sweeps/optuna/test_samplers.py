"""The draws of the samplers, which a kill does not change."""

import math
from pathlib import Path

import pytest

from nanolm.sweeps.optuna.samplers import FAILED, SAMPLERS, shuffled_grid
from nanolm.sweeps.optuna.settings import SAMPLER_NAMES, OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Range, Value, grid_points
from nanolm.sweeps.optuna.study import OpenStudy, open_study, point_of, register_sweeper, take_trials

NUMBERS = (Interval("lr", 1e-4, 1e-1, is_log=True), Interval("dropout", 0.0, 0.5), Range("layers", 1, 8, 1))
SPACES: dict[str, tuple[Dimension, ...]] = {
    "tpe": (*NUMBERS, Choice("model", ("gpt", "gpt2"))),
    "random": (*NUMBERS, Choice("model", ("gpt", "gpt2"))),
    "grid": (Choice("model", ("gpt", "gpt2", "bare")), Range("layers", 1, 4, 1)),
    "cmaes": NUMBERS,
}


def bowl(point: dict[str, Value]) -> float:
    """Least at lr 0.003, dropout 0.1, 4 layers and gpt2."""
    terms = {
        "lr": lambda value: (math.log10(value) - math.log10(0.003)) ** 2,
        "dropout": lambda value: 10 * (value - 0.1) ** 2,
        "layers": lambda value: 0.1 * (value - 4) ** 2,
        "model": lambda value: 0.2 * (value != "gpt2"),
    }
    return sum(terms[key](value) for key, value in point.items())


def opened(folder: Path, sampler: str, n_trials: int, seed: int = 3) -> OpenStudy:
    settings = OptunaConfig(sampler=sampler, n_trials=n_trials, seed=seed, tpe_startup_trials=5)
    return open_study(folder, "study", settings, SPACES[sampler], max_steps=100)


def run_trials(folder: Path, sampler: str, n_trials: int, seed: int = 3) -> list[dict[str, Value]]:
    """Run the missing trials of a study and return the points of all its trials."""
    study = opened(folder, sampler, n_trials, seed)
    with register_sweeper(folder) as sweeper:
        while numbers := take_trials(study, sweeper, 1):
            for number in numbers:
                study.study.tell(number, bowl(point_of(study, number)))
    return [point_of(study, trial.number) for trial in study.trials()]


def test_samplers_has_the_names_of_the_settings() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES == tuple(SPACES)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_sampler_draws_depend_on_the_seed(sampler: str, tmp_path: Path) -> None:
    first = run_trials(tmp_path / "first", sampler, 12)
    assert len(first) == 12
    assert run_trials(tmp_path / "second", sampler, 12) == first
    assert run_trials(tmp_path / "third", sampler, 12, seed=4) != first


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_sampler_draws_the_same_in_several_sessions(sampler: str, tmp_path: Path) -> None:
    uninterrupted = run_trials(tmp_path / "uninterrupted", sampler, 12)
    for n_trials in (3, 7, 12):
        resumed = run_trials(tmp_path / "resumed", sampler, n_trials)
        assert resumed == uninterrupted[:n_trials]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_sampler_completes_a_half_drawn_trial(sampler: str, tmp_path: Path) -> None:
    uninterrupted = run_trials(tmp_path / "uninterrupted", sampler, 9)
    run_trials(tmp_path / "resumed", sampler, 8)
    # The state after a kill between the first and the second parameter.
    study = opened(tmp_path / "resumed", sampler, 9)
    trial = study.study.ask()
    first = SPACES[sampler][0]
    if isinstance(first, Choice):
        trial.suggest_categorical(first.key, first.options)
    else:
        assert isinstance(first, Interval)
        trial.suggest_float(first.key, first.low, first.high, log=first.is_log)
    assert run_trials(tmp_path / "resumed", sampler, 9) == uninterrupted


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_search_beats_random_sampling(sampler: str, tmp_path: Path) -> None:
    space = SPACES[sampler]

    def late_mean(name: str) -> float:
        """Return the mean of the last ten of forty trials."""
        settings = OptunaConfig(sampler=name, n_trials=40, seed=3)
        study = open_study(tmp_path / name, "study", settings, space, max_steps=100)
        with register_sweeper(study.folder) as sweeper:
            while numbers := take_trials(study, sweeper, 1):
                study.study.tell(numbers[0], bowl(point_of(study, numbers[0])))
        return sum(trial.value for trial in study.trials()[-10:]) / 10

    assert late_mean(sampler) < 0.5 * late_mean("random")


def test_floats_have_four_digits(tmp_path: Path) -> None:
    for point in run_trials(tmp_path, "tpe", 12):
        assert point["lr"] == float(f"{point['lr']:.4g}")
        assert 1e-4 <= float(point["lr"]) <= 1e-1


def test_grid_has_every_point_once_in_random_order(tmp_path: Path) -> None:
    space = SPACES["grid"]
    points = run_trials(tmp_path, "grid", 100)
    assert len(points) == 12
    assert points != grid_points(space)
    assert sorted(map(str, points)) == sorted(map(str, grid_points(space)))
    assert shuffled_grid(space, 1) != shuffled_grid(space, 2)


def test_cmaes_continues_after_a_failed_trial(tmp_path: Path) -> None:
    study = opened(tmp_path, "cmaes", 30)
    with register_sweeper(tmp_path) as sweeper:
        for n in range(14):
            (number,) = take_trials(study, sweeper, 1)
            if n == 2:
                study.set_attribute(number, FAILED, "diverged")
            else:
                study.study.tell(number, bowl(point_of(study, number)))
        (number,) = take_trials(study, sweeper, 1)
    before = run_trials(tmp_path / "uninterrupted", "cmaes", 15)
    assert number == 14
    assert point_of(study, number) != before[14], "the failed one counts as the worst of its generation"
