"""Decisions of the pruners that can be worked out by hand."""

import random

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from nanolm.sweeps.optuna.pruners import PRUNERS, bracket_cycle, first_step_at, is_eliminated, rung_steps
from nanolm.sweeps.optuna.settings import PRUNER_NAMES, OptunaConfig


def study_of(*losses: dict[int, float], state: TrialState = TrialState.COMPLETE) -> optuna.Study:
    study = optuna.create_study()
    for trial in losses:
        study.add_trial(create_trial(state=state, value=trial[max(trial)], intermediate_values=trial))
    return study


def running(losses: dict[int, float], number: int) -> optuna.trial.FrozenTrial:
    trial = create_trial(state=TrialState.RUNNING, intermediate_values=losses)
    trial.number = number
    return trial


def test_pruners_has_the_names_of_the_settings() -> None:
    assert tuple(PRUNERS) == PRUNER_NAMES


@pytest.mark.parametrize(
    ("min_steps", "max_steps", "factor", "rungs"),
    [
        (30, 270, 3, [30, 90]),
        (30, 271, 3, [30, 90, 270]),
        (1, 8, 2, [1, 2, 4]),
        (100, 100, 3, []),
        (200, 100, 3, []),
        (34, 300, 3, [34, 102]),
    ],
)
def test_rung_steps_are_below_max_steps(min_steps: int, max_steps: int, factor: int, rungs: list[int]) -> None:
    assert rung_steps(min_steps, max_steps, factor) == rungs


def test_first_step_at_is_the_evaluation_after_the_rung() -> None:
    assert first_step_at({25: 3.0, 50: 2.5}, 30) == 50
    assert first_step_at({25: 3.0}, 30) is None


def test_is_eliminated_promotes_one_in_three() -> None:
    others = [{30: loss} for loss in (3.0, 2.9, 2.8, 2.7, 2.6)]
    assert not is_eliminated({30: 2.65}, others, [30], 3)
    assert is_eliminated({30: 2.75}, others, [30], 3)


def test_is_eliminated_promotes_only_the_best_of_the_first() -> None:
    assert not is_eliminated({30: 3.0}, [], [30], 3)
    assert is_eliminated({30: 3.1}, [{30: 3.0}], [30], 3)
    assert not is_eliminated({30: 2.9}, [{30: 3.0}], [30], 3)


def test_is_eliminated_decides_only_at_rungs() -> None:
    others = [{30: 2.0, 60: 1.0}]
    assert not is_eliminated({30: 1.9, 60: 5.0}, others, [30], 3)
    assert not is_eliminated({15: 9.0}, others, [30], 3)


def test_is_eliminated_ignores_trials_below_the_rung() -> None:
    assert not is_eliminated({30: 2.5, 90: 2.4}, [{30: 2.0}, {30: 2.1}], [30, 90], 3)


def test_asha_decides_as_optuna_does_without_kills() -> None:
    """Compare with Optuna's SuccessiveHalvingPruner, which stores completed rungs, on random losses."""
    draw = random.Random(1)
    settings = OptunaConfig(pruner="asha", min_steps=1, reduction_factor=3)
    theirs = optuna.create_study(
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3), direction="minimize"
    )
    ours = optuna.create_study(pruner=PRUNERS["asha"](settings, 27), direction="minimize")
    ends = []
    for _ in range(60):
        pair = [study.ask() for study in (theirs, ours)]
        bias = draw.random()
        for step in range(1, 28):
            loss = bias + 0.3 * draw.random()
            for trial in pair:
                trial.report(loss, step)
            # A run never asks about its last step.
            decisions = [step < 27 and trial.should_prune() for trial in pair]
            assert decisions[0] == decisions[1]
            if decisions[0]:
                break
        ends.append(step)
        for study, trial in zip((theirs, ours), pair, strict=True):
            study.tell(trial, loss)
    assert {1, 3, 9, 27} == set(ends)


def test_bracket_cycle_has_hyperband_shares_evenly_spread() -> None:
    cycle = bracket_cycle(3, 3)
    assert [cycle.count(bracket) for bracket in range(3)] == [9, 5, 3]
    assert set(cycle[:6]) == {0, 1, 2}


def test_hyperband_compares_trials_of_one_bracket() -> None:
    settings = OptunaConfig(pruner="hyperband", min_steps=30, reduction_factor=3)
    pruner = PRUNERS["hyperband"](settings, 270)
    cycle = bracket_cycle(3, 3)
    # All trials of bracket 0 are better than the trial of bracket 1 in question.
    study = study_of(*({30: 1.0 if bracket == 0 else 9.0, 90: 9.0} for bracket in cycle))
    first, second = len(cycle) + cycle.index(0), len(cycle) + cycle.index(1)
    assert pruner.prune(study, running({30: 2.0}, first))
    assert not pruner.prune(study, running({30: 2.0}, second)), "bracket 1 has no rung at 30"
    assert not pruner.prune(study, running({30: 2.0, 90: 2.0}, second))


def test_median_prunes_the_worse_half_after_startup() -> None:
    settings = OptunaConfig(pruner="median", min_steps=20, median_startup_trials=3)
    pruner = PRUNERS["median"](settings, 100)
    done = [{10: loss, 20: loss} for loss in (1.0, 2.0, 3.0)]
    assert pruner.prune(study_of(*done), running({20: 2.5}, 3))
    assert not pruner.prune(study_of(*done), running({20: 1.5}, 3))
    assert not pruner.prune(study_of(*done), running({10: 2.5}, 3)), "before min_steps"
    assert not pruner.prune(study_of(*done[:2]), running({20: 9.0}, 2)), "too few are complete"


def test_none_prunes_nothing() -> None:
    assert not PRUNERS["none"](OptunaConfig(), 100).prune(study_of({10: 1.0}), running({10: 9.0}, 1))
