"""A study that tests of its journal, its trials and its sweepers share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Interval
from nanolm.sweeps.optuna.study import OpenStudy, open_study

MakeStudy = Callable[..., OpenStudy]


def open_small_study(folder: Path, pruner: str = "asha", n_trials: int = 6) -> OpenStudy:
    """Open a study in a folder."""
    settings = OptunaConfig(sampler="random", pruner=pruner, n_trials=n_trials, min_steps=10, reduction_factor=3)
    space = (Interval("lr", 1e-4, 1e-1, is_log=True), Choice("model", ("gpt", "gpt2")))
    return open_study(folder, "study", settings, space, max_steps=90)


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Return a function that opens one study, in the test's folder unless another is given."""

    def make(folder: Path = tmp_path, pruner: str = "asha", n_trials: int = 6) -> OpenStudy:
        return open_small_study(folder, pruner, n_trials)

    return make
