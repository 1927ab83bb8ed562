"""Checks of a study at points of its search space."""

from pathlib import Path

import pytest

from nanolm.errors import SettingsError
from nanolm.sweeps.optuna.checks import MAX_POINTS, check_points, probes, shared_settings
from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Interval, Range
from tests.helpers import SMALL, make_config


def test_check_points_accepts_a_space_with_some_valid_points(small_text: Path) -> None:
    settings = OptunaConfig(sampler="random", n_trials=2)
    fixed = [*SMALL, "dataset=text", f"dataset.path={small_text}", "size.d_model=16"]

    def checked(*space: Choice, more: tuple[str, ...] = ()) -> int:
        return check_points(settings, space, [*fixed, *more], (None, [])).size.n_heads

    assert checked(Choice("size.n_heads", (3, 2, 5))) == 2, "the first valid one"
    with pytest.raises(SettingsError, match=r"size\.n_heads \(3\)[\s\S]*size\.n_heads \(5\)"):
        checked(Choice("size.n_heads", (3, 5)))
    with pytest.raises(SettingsError, match="must be at least 1"):
        checked(Choice("size.n_heads", (2, 0)))
    with pytest.raises(SettingsError, match=r"d_model \(16\) is not divisible by size\.n_heads \(3\)"):
        checked(Choice("optimizer.lr", (1e-3, 1e-2)), more=("size.n_heads=3",))


def test_probes_of_a_large_space_are_its_edges() -> None:
    small = [Choice("a", ("x", "y")), Range("b", 1, 4, 1)]
    assert len(probes(small)) == 8
    large = [Choice("a", ("x", "y", "z")), Range("b", 1, MAX_POINTS, 1), Interval("c", 0.0, 1.0)]
    assert probes(large) == [
        {"a": "x", "b": 1, "c": 0.0},
        {"a": "y", "b": 1, "c": 0.0},
        {"a": "z", "b": 1, "c": 0.0},
        {"a": "x", "b": MAX_POINTS, "c": 0.0},
        {"a": "x", "b": 1, "c": 1.0},
        {"a": "x", "b": 1, "c": 0.382},
    ]


def test_shared_settings_are_those_that_affect_losses() -> None:
    base = shared_settings(make_config("trainer.max_steps=10"))
    assert shared_settings(make_config("trainer.max_steps=10", "trainer.device=cpu", "trainer.log_every=3")) == base
    for override in ("trainer.max_steps=20", "trainer.eval_every=7", "seed=3", "model.dropout=0.3"):
        assert shared_settings(make_config("trainer.max_steps=10", override)) != base
