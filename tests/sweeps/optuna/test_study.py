"""The assignment of trials to sweepers, and the name of a study."""

from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from nanolm.errors import RunError
from nanolm.sweeps.optuna.samplers import FAILED
from nanolm.sweeps.optuna.settings import OptunaConfig
from nanolm.sweeps.optuna.space import Choice, Interval
from nanolm.sweeps.optuna.study import (
    OpenStudy,
    n_impossible,
    open_study,
    point_of,
    register_sweeper,
    reject_trial,
    shared_trials,
    study_name,
    take_trials,
)


def test_take_trials_prefers_abandoned_trials(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    first, second = make_study(), make_study()
    with register_sweeper(tmp_path) as one:
        with register_sweeper(tmp_path) as other:
            assert take_trials(first, one, 2) == [0, 1]
            assert take_trials(second, other, 2) == [2, 3]
            assert shared_trials(first, one)
            second.set_attribute(2, FAILED, "no room on the disk")
            second.set_attribute(3, FAILED, "no room on the disk")
            assert not shared_trials(first, one), "two sweepers with a failure each would wait for each other"
            point = point_of(second, 2)
        # The other sweeper has ended, and its trials are still open.
        assert not shared_trials(first, one)
        assert take_trials(first, one, 9) == [2, 3], "abandoned trials come first and alone"
        assert point_of(first, 2) == point
        assert take_trials(first, one, 9) == [4, 5]
        assert take_trials(first, one, 9) == [], "n_trials is for all together"


def test_take_trials_replaces_an_impossible_trial(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study(n_trials=3)
    with register_sweeper(tmp_path) as sweeper:
        assert take_trials(study, sweeper, 2) == [0, 1]
        reject_trial(study, 0, "3 heads do not divide 8")
        reject_trial(study, 1, "3 heads do not divide 16")
        assert take_trials(study, sweeper, 9) == [2, 3, 4]
        assert take_trials(study, sweeper, 9) == []
        assert not shared_trials(study, sweeper)
    assert n_impossible(study.trials()) == 2
    assert [trial.state for trial in study.trials()[:3]] == [TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]


def test_take_trials_ends_with_the_points_of_a_grid(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    space = (Choice("model", ("gpt", "gpt2", "bare")),)
    study = open_study(tmp_path, "study", OptunaConfig(sampler="grid", n_trials=2), space, max_steps=9)
    with register_sweeper(tmp_path) as sweeper:
        assert take_trials(study, sweeper, 1) == [0]
        reject_trial(study, 0, "no")
        assert take_trials(study, sweeper, 9) == [1, 2]
        reject_trial(study, 1, "no")
        assert take_trials(study, sweeper, 9) == []


def test_open_study_refuses_the_folder_of_a_run(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunError, match="is a run: the runs of a sweep"):
        make_study()
    assert len(list(tmp_path.iterdir())) == 2


def test_take_trials_retries_failures_in_the_next_sweeper(make_study: Callable[..., OpenStudy], tmp_path: Path) -> None:
    study = make_study(n_trials=2)
    with register_sweeper(tmp_path) as sweeper:
        take_trials(study, sweeper, 1)
        study.set_attribute(0, FAILED, "no room on the disk")
        assert take_trials(study, sweeper, 9) == [1]
        study.study.tell(1, 2.0)
        assert take_trials(study, sweeper, 9) == []
    with register_sweeper(tmp_path) as sweeper:
        assert take_trials(study, sweeper, 9) == [0]
        assert not study.trials()[0].user_attrs[FAILED]


SPACE = (Interval("lr", 1e-4, 1e-1, is_log=True), Choice("model", ("gpt", "gpt2")))


def test_study_name_depends_on_what_affects_the_trials() -> None:
    settings = OptunaConfig(pruner="asha")
    name = study_name(settings, SPACE, {"seed": 1})
    assert name.startswith("tpe_asha_")
    assert study_name(OptunaConfig(pruner="asha", n_trials=99, max_running=4), SPACE, {"seed": 1}) == name
    assert study_name(settings, SPACE[::-1], {"seed": 1}) == name
    others = [
        study_name(settings, SPACE, {"seed": 2}),
        study_name(settings, SPACE[:1], {"seed": 1}),
        study_name(OptunaConfig(pruner="asha", seed=1), SPACE, {"seed": 1}),
        study_name(OptunaConfig(pruner="asha", reduction_factor=5), SPACE, {"seed": 1}),
        study_name(OptunaConfig(sampler="random", pruner="asha"), SPACE, {"seed": 1}),
    ]
    assert len({name, *others}) == 6
