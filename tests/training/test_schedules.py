import pytest

from nanolm.config import ConstantConfig, CosineConfig
from nanolm.training.schedules import factor


def test_warmup_rises_in_a_line_and_cosine_falls_to_its_end() -> None:
    config = CosineConfig(warmup_steps=10, final_fraction=0.1)
    factors = [factor(step, 100, config) for step in range(101)]
    assert factors[:10] == pytest.approx([(n + 1) / 11 for n in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_a_schedule_ends_where_it_ended_when_it_is_asked_for_more() -> None:
    assert factor(500, 100, CosineConfig(warmup_steps=0, final_fraction=0.1)) == pytest.approx(0.1)


def test_constant_stays() -> None:
    assert {factor(step, 100, ConstantConfig(warmup_steps=0)) for step in range(100)} == {1.0}


def test_warmup_is_a_twentieth_unless_it_is_given() -> None:
    assert [factor(step, 100, ConstantConfig()) for step in (0, 4, 5)] == pytest.approx([1 / 6, 5 / 6, 1])
    assert factor(0, 10, ConstantConfig()) == 1
