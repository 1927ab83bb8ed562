"""Checks of the settings of a study."""

import pytest

from nanolm.config.trainer import TrainerConfig
from nanolm.errors import raise_all
from nanolm.sweeps.optuna.settings import OptunaConfig, check_length, check_settings, n_trials_of
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Range

LR = Interval("optimizer.lr", 1e-4, 1e-2, is_log=True)
MODEL = Choice("model", ("gpt", "gpt2"))


def test_check_settings_accepts_valid_studies() -> None:
    for settings, space in (
        (OptunaConfig(), [LR, MODEL]),
        (OptunaConfig(sampler="cmaes", pruner="asha"), [LR]),
        (OptunaConfig(sampler="grid", pruner="median", min_steps=50), [MODEL]),
    ):
        assert check_settings(settings, space) == []


@pytest.mark.parametrize(
    ("settings", "space", "complaint"),
    [
        (OptunaConfig(sampler="tpee"), [LR], r"unknown sampler 'tpee'(?s:.*)did you mean tpe\?"),
        (OptunaConfig(pruner="asa"), [LR], r"unknown pruner 'asa'(?s:.*)did you mean asha\?"),
        (OptunaConfig(reduction_factor=1), [LR], "reduction_factor is 1, and must be at least 2"),
        (OptunaConfig(), [], "no setting varies"),
        (OptunaConfig(sampler="cmaes"), [MODEL], r"gpt, gpt2 are choices(?s:.*)leave it out"),
        (OptunaConfig(sampler="cmaes"), [Choice("a", ("0.3", "0.1"))], r"a=interval\(0.1,0.3\)"),
        (
            OptunaConfig(sampler="grid"),
            [LR],
            r"enumerate interval\(0.0001,0.01\)(?s:.*)optimizer.lr=0.0001,0.01",
        ),
        (OptunaConfig(), [Choice("tokenizer", ("char", "byte"))], "losses on different tokens do not compare"),
        (OptunaConfig(pruner="asha"), [Range("trainer.max_steps", 10, 90, 10)], "of the same length"),
    ],
)
def test_check_settings_refuses_invalid_studies(settings: OptunaConfig, space: list[Dimension], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        raise_all(check_settings(settings, space))


def test_check_settings_reports_all_mistakes() -> None:
    settings = OptunaConfig(sampler="cmaes", pruner="asa", n_trials=0)
    assert len(check_settings(settings, [MODEL, Choice("dataset", ("a", "b"))])) == 5


def test_n_trials_of_a_grid_is_its_size() -> None:
    space = [MODEL, Range("size.n_layers", 1, 3, 1)]
    assert n_trials_of(OptunaConfig(sampler="grid"), space) == 6
    assert n_trials_of(OptunaConfig(sampler="grid", n_trials=4), space) == 4
    assert n_trials_of(OptunaConfig(sampler="grid", n_trials=9), space) == 6
    assert n_trials_of(OptunaConfig(), space) == 20


def test_check_length_refuses_a_pruner_without_effect() -> None:
    assert check_length(OptunaConfig(pruner="asha", min_steps=99), TrainerConfig(max_steps=100)) == []
    assert check_length(OptunaConfig(min_steps=100), TrainerConfig(max_steps=100)) == []
    (problem,) = check_length(OptunaConfig(pruner="asha", min_steps=100), TrainerConfig(max_steps=100))
    assert "none would be pruned" in str(problem)


def test_check_settings_refuses_a_huge_grid() -> None:
    space: list[Dimension] = [Range("seed", 1, 10**12, 1)]
    (problem,) = check_settings(OptunaConfig(sampler="grid"), space)
    assert "a grid of 1,000,000,000,000 points is too large" in problem.found
    assert check_settings(OptunaConfig(sampler="random"), space) == []
