import hypothesis
import pytest
from hypothesis import strategies

from nanolm.training.pace import Pace, times_due


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@hypothesis.given(strategies.integers(0, 60), strategies.integers(1, 60), strategies.integers(1, 70))
def test_times_due_counts_as_the_loop_does(step: int, more: int, every: int) -> None:
    last = step + more
    assert times_due(step, last, every) == sum(s % every == 0 or s == last for s in range(step + 1, last + 1))


def test_pace_excludes_pauses(clock: Clock) -> None:
    pace = Pace(clock=clock)
    for _ in range(3):
        clock.now += 0.5
        pace.step(100)
        with pace.paused("evaluation"):
            clock.now += 2
    assert (pace.tokens, pace.seconds) == (300, 1.5)


def test_step_that_compiles_does_not_count(clock: Clock) -> None:
    pace = Pace(clock=clock)
    clock.now += 8
    pace.step(100, counts=False)
    assert pace.tokens_per_second() is None
    assert pace.seconds_left(10, {}) is None
    clock.now += 0.5
    pace.step(100)
    assert (pace.tokens, pace.seconds) == (100, 0.5)


def test_speed_is_measured_since_the_previous_call(clock: Clock) -> None:
    pace = Pace(tokens=1000, seconds=1.0, clock=clock)
    clock.now += 0.5
    pace.step(100)
    assert pace.tokens_per_second() == 200
    clock.now += 0.25
    pace.step(1000)
    assert pace.tokens_per_second() == 4000
    assert pace.tokens_per_second() is None


def test_seconds_left_includes_evaluations_and_saves(clock: Clock) -> None:
    pace = Pace(clock=clock)
    clock.now += 0.5
    pace.step(1)
    with pace.paused("evaluation"):
        clock.now += 2
    assert pace.seconds_left(10, {}) == 5
    assert pace.seconds_left(10, {"evaluation": 3, "save": 5}) == 5 + 3 * 2


def test_pace_excludes_the_time_before_a_restart(clock: Clock) -> None:
    pace = Pace(clock=clock)
    clock.now += 2.0
    pace.step(100)
    clock.now += 50.0
    pace.restart()
    clock.now += 2.0
    pace.step(100)
    assert (pace.tokens, pace.seconds) == (200, 4.0)
