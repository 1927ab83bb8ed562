"""What can be wrong with a study before anything is trained."""

import pytest

from nanolm.errors import raise_all
from nanolm.sweeps.optuna.settings import OptunaConfig, check_length, check_settings, n_trials_of
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Range

LR = Interval("optimizer.lr", 1e-4, 1e-2, is_log=True)
MODEL = Choice("model", ("gpt", "gpt2"))


def test_what_is_right_is_let_through() -> None:
    for settings, space in (
        (OptunaConfig(), [LR, MODEL]),
        (OptunaConfig(sampler="cmaes", pruner="asha"), [LR]),
        (OptunaConfig(sampler="grid", pruner="median", min_steps=50), [MODEL]),
    ):
        assert check_settings(settings, space) == []


@pytest.mark.parametrize(
    ("settings", "space", "complaint"),
    [
        (OptunaConfig(sampler="tpee"), [LR], r"no sampler 'tpee'(?s:.*)did you mean tpe\?"),
        (OptunaConfig(pruner="asa"), [LR], r"no pruner 'asa'(?s:.*)did you mean asha\?"),
        (OptunaConfig(reduction_factor=1), [LR], "reduction_factor is 1, and must be at least 2"),
        (OptunaConfig(), [], "nothing is left to choose"),
        (OptunaConfig(sampler="cmaes"), [MODEL], r"gpt, gpt2 are words to it(?s:.*)leave it out"),
        (OptunaConfig(sampler="cmaes"), [Choice("a", ("0.3", "0.1"))], r"a=interval\(0.1,0.3\)"),
        (OptunaConfig(sampler="grid"), [LR], r"no points in interval\(0.0001,0.01\)(?s:.*)optimizer.lr=0.0001,0.01"),
        (OptunaConfig(), [Choice("tokenizer", ("char", "byte"))], "losses on other tokens do not compare"),
        (OptunaConfig(pruner="asha"), [Range("trainer.max_steps", 10, 90, 10)], "the same length"),
    ],
)
def test_a_study_that_cannot_be_right_is_refused(
    settings: OptunaConfig, space: list[Dimension], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        raise_all(check_settings(settings, space))


def test_all_mistakes_are_said_at_once() -> None:
    settings = OptunaConfig(sampler="cmaes", pruner="asa", n_trials=0)
    assert len(check_settings(settings, [MODEL, Choice("dataset", ("a", "b"))])) == 5


def test_a_grid_has_as_many_trials_as_points() -> None:
    space = [MODEL, Range("size.n_layers", 1, 3, 1)]
    assert n_trials_of(OptunaConfig(sampler="grid"), space) == 6
    assert n_trials_of(OptunaConfig(sampler="grid", n_trials=4), space) == 4
    assert n_trials_of(OptunaConfig(sampler="grid", n_trials=9), space) == 6
    assert n_trials_of(OptunaConfig(), space) == 20


def test_a_first_rung_behind_the_end_is_refused() -> None:
    assert check_length(OptunaConfig(pruner="asha", min_steps=99), 100) == []
    assert check_length(OptunaConfig(min_steps=100), 100) == []
    (problem,) = check_length(OptunaConfig(pruner="asha", min_steps=100), 100)
    assert "none would be given up" in str(problem)


def test_a_grid_of_too_many_points_is_refused() -> None:
    space: list[Dimension] = [Range("seed", 1, 10**12, 1)]
    (problem,) = check_settings(OptunaConfig(sampler="grid"), space)
    assert "a grid of 1,000,000,000,000 points is too large" in problem.found
    assert check_settings(OptunaConfig(sampler="random"), space) == []
