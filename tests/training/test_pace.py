import time

import hypothesis
import pytest
from hypothesis import strategies

from nanolm.training.pace import Pace, times_due


@hypothesis.given(strategies.integers(0, 60), strategies.integers(1, 60), strategies.integers(1, 70))
def test_what_is_due_is_counted_as_the_loop_does_it(step: int, more: int, every: int) -> None:
    last = step + more
    assert times_due(step, last, every) == sum(s % every == 0 or s == last for s in range(step + 1, last + 1))


def test_what_the_loop_stops_for_is_no_training() -> None:
    pace = Pace()
    for _ in range(3):
        time.sleep(0.02)
        pace.step(100)
        with pace.paused("evaluation"):
            time.sleep(0.2)
    assert pace.tokens == 300
    assert 0.06 <= pace.seconds < 0.2


def test_a_step_that_compiles_does_not_count() -> None:
    pace = Pace()
    time.sleep(0.2)
    pace.step(100, counts=False)
    assert pace.tokens_per_second() is None
    assert pace.seconds_left(10, {}) is None
    time.sleep(0.01)
    pace.step(100)
    assert pace.tokens == 100
    assert pace.seconds < 0.2


def test_the_speed_is_that_since_it_was_last_asked() -> None:
    pace = Pace()
    time.sleep(0.05)
    pace.step(100)
    slow = pace.tokens_per_second()
    time.sleep(0.01)
    pace.step(1000)
    fast = pace.tokens_per_second()
    assert slow is not None
    assert fast is not None
    assert slow < 2000 < fast
    assert pace.tokens_per_second() is None


def test_the_time_left_has_the_evaluations_and_saves_that_are_to_come() -> None:
    pace = Pace()
    time.sleep(0.01)
    pace.step(1)
    with pace.paused("evaluation"):
        time.sleep(0.1)
    steps_alone = pace.seconds_left(10, {})
    both = pace.seconds_left(10, {"evaluation": 3, "save": 5})
    assert steps_alone is not None
    assert both is not None
    assert both - steps_alone == pytest.approx(0.3, rel=0.3)
