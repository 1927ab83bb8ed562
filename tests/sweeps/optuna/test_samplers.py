"""What a trial tries next, and that a kill does not change it."""

import math
from pathlib import Path

import pytest

from nanolm.sweeps.optuna.samplers import FAILED, SAMPLERS, shuffled_grid
from nanolm.sweeps.optuna.settings import SAMPLER_NAMES, OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Range, Value, grid
from nanolm.sweeps.optuna.study import OpenStudy, open_study, owner, point_of, take

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
    settings = OptunaConfig(sampler=sampler, n_trials=n_trials, seed=seed, tpe_after=5)
    return open_study(folder, "study", settings, SPACES[sampler], max_steps=100)


def run_trials(folder: Path, sampler: str, n_trials: int, seed: int = 3) -> list[dict[str, Value]]:
    """Runs what is missing of a study; returns the points of all its trials."""
    study = opened(folder, sampler, n_trials, seed)
    with owner(folder) as me:
        while numbers := take(study, me, 1):
            for number in numbers:
                study.study.tell(number, bowl(point_of(study, number)))
    return [point_of(study, trial.number) for trial in study.trials()]


def test_the_table_has_the_names_that_the_settings_know() -> None:
    assert tuple(SAMPLERS) == SAMPLER_NAMES == tuple(SPACES)


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_seed_draws_the_same_trials_and_another_one_others(sampler: str, tmp_path: Path) -> None:
    first = run_trials(tmp_path / "first", sampler, 12)
    assert len(first) == 12
    assert run_trials(tmp_path / "second", sampler, 12) == first
    assert run_trials(tmp_path / "third", sampler, 12, seed=4) != first


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_study_in_parts_has_the_trials_of_one_at_a_stretch(sampler: str, tmp_path: Path) -> None:
    whole = run_trials(tmp_path / "whole", sampler, 12)
    for n_trials in (3, 7, 12):
        parted = run_trials(tmp_path / "parted", sampler, n_trials)
        assert parted == whole[:n_trials]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_a_trial_that_was_left_half_drawn_is_what_it_would_have_been(sampler: str, tmp_path: Path) -> None:
    whole = run_trials(tmp_path / "whole", sampler, 9)
    run_trials(tmp_path / "parted", sampler, 8)
    # As a kill leaves it that comes behind the first parameter.
    study = opened(tmp_path / "parted", sampler, 9)
    trial = study.study.ask()
    first = SPACES[sampler][0]
    if isinstance(first, Choice):
        trial.suggest_categorical(first.key, first.words)
    else:
        assert isinstance(first, Interval)
        trial.suggest_float(first.key, first.low, first.high, log=first.is_log)
    assert run_trials(tmp_path / "parted", sampler, 9) == whole


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_search_does_better_than_chance(sampler: str, tmp_path: Path) -> None:
    space = SPACES[sampler]

    def late(name: str) -> float:
        """The mean of the last ten of forty trials."""
        settings = OptunaConfig(sampler=name, n_trials=40, seed=3)
        study = open_study(tmp_path / name, "study", settings, space, max_steps=100)
        with owner(study.folder) as me:
            while numbers := take(study, me, 1):
                study.study.tell(numbers[0], bowl(point_of(study, numbers[0])))
        return sum(trial.value for trial in study.trials()[-10:]) / 10

    assert late(sampler) < 0.5 * late("random")


def test_floats_are_as_short_as_the_name_of_a_folder(tmp_path: Path) -> None:
    for point in run_trials(tmp_path, "tpe", 12):
        assert point["lr"] == float(f"{point['lr']:.4g}")
        assert 1e-4 <= float(point["lr"]) <= 1e-1


def test_a_grid_is_every_point_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    space = SPACES["grid"]
    points = run_trials(tmp_path, "grid", 100)
    assert len(points) == 12
    assert points != grid(space)
    assert sorted(map(str, points)) == sorted(map(str, grid(space)))
    assert shuffled_grid(space, 1) != shuffled_grid(space, 2)


def test_a_failed_trial_does_not_hold_up_cmaes(tmp_path: Path) -> None:
    study = opened(tmp_path, "cmaes", 30)
    with owner(tmp_path) as me:
        for n in range(14):
            (number,) = take(study, me, 1)
            if n == 2:
                study.mark(number, FAILED, "diverged")
            else:
                study.study.tell(number, bowl(point_of(study, number)))
        (number,) = take(study, me, 1)
    before = run_trials(tmp_path / "whole", "cmaes", 15)
    assert number == 14
    assert point_of(study, number) != before[14], "the failed one counts as the worst of its generation"
