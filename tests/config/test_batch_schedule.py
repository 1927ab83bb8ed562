"""Batch-size and context-length schedules: their stages, and every mistake in them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolm.config.batch_schedule import (
    Stage,
    describe_stages,
    largest_stage,
    stage_at,
    stages,
    total_tokens,
    with_stage,
)
from nanolm.config.checks import check
from nanolm.config.fractions import steps_until
from nanolm.model import count
from tests.helpers import make_config, mistakes

BATCHES = "trainer.batch_size_schedule"
CONTEXTS = "trainer.context_length_schedule"
BOTH = (f"{BATCHES}=[[0.25,4],[0.5,8]]", f"{CONTEXTS}=[[0.3,32]]", "trainer.batch_size=12", "size.context_length=64")


def test_stages_change_where_either_schedule_does() -> None:
    config = make_config(*BOTH, "trainer.max_steps=1000")
    assert stages(config) == (
        Stage(0, 250, 4, 32, 0, 0),
        Stage(250, 300, 8, 32, 1, 1000),
        Stage(300, 500, 8, 64, 2, 0),
        Stage(500, 1000, 12, 64, 3, 1600),
    )
    assert [stage_at(config, step).number for step in (0, 249, 250, 299, 300, 999, 1000)] == [0, 0, 1, 1, 2, 3, 3]
    assert total_tokens(config) == 32 * (1000 + 400) + 64 * (1600 + 6000)
    assert total_tokens(config, first=400) == 64 * (800 + 6000)
    assert largest_stage(config).shape == (12, 64)
    assert describe_stages(config) == (
        "batches of 4 x 32 until step 250, 8 x 32 until step 300, 8 x 64 until step 500, then 12 x 64 tokens"
    )


def test_run_without_schedule_is_one_stage() -> None:
    config = make_config("trainer.max_steps=7", "trainer.batch_size=12", "size.context_length=64")
    assert stages(config) == (Stage(0, 7, 12, 64),)
    assert total_tokens(config) == 7 * 12 * 64


def test_stages_without_a_step_are_left_out() -> None:
    config = make_config(*BOTH, "trainer.max_steps=3")
    assert [(stage.start, stage.end, stage.shape) for stage in stages(config)] == [(0, 1, (8, 64)), (1, 3, (12, 64))]


@given(st.integers(1, 10**9), st.integers(1, 99))
def test_fractions_of_the_steps_are_exact(max_steps: int, percent: int) -> None:
    assert steps_until(percent / 100, max_steps) == percent * max_steps // 100


def test_flops_are_the_mean_over_the_batches() -> None:
    config = make_config(*BOTH, "trainer.max_steps=1000", "size=tiny", "size.context_length=64")
    by_stage = [(stage, count.training_flops_per_token(with_stage(config, stage), 65) or 0) for stage in stages(config)]
    total = sum(stage.steps_from(0) * stage.tokens_per_step * flops for stage, flops in by_stage)
    assert count.mean_flops_per_token(config, 65) == round(total / total_tokens(config))
    assert set(count.flops_by_context(config, 65)) == {32, 64}
    assert by_stage[0][1] < by_stage[-1][1] == count.training_flops_per_token(config, 65)


@pytest.mark.parametrize("key", [BATCHES, CONTEXTS])
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("[0.5,4]", ["{key}[0] is 0.5, and must be a pair of numbers", "{key}[1] is 4, and must be a pair of numbers"]),
        ("[[0.5]]", ["{key}[0] is [0.5], and must be a pair of numbers"]),
        ("[[0.5,a]]", ["{key}[0] is [0.5, 'a'], and must be a pair of numbers"]),
        ("[[true,4]]", ["{key}[0] is [True, 4], and must be a pair of numbers"]),
        ("[{until:0.5}]", ["{key}[0] is {{'until': 0.5}}, and must be a pair of numbers"]),
        ("[[0,4]]", ["{key}[0] ends at the fraction 0 of the steps, which must be more than 0 and less than 1"]),
        ("[[1,4]]", ["{key}[0] ends at the fraction 1 of the steps, which must be more than 0 and less than 1"]),
        ("[[250,4]]", ["{key}[0] ends at the fraction 250 of the steps, which must be more than 0 and less than 1"]),
        ("[[.nan,4]]", ["{key}[0] is ['.nan', 4], and must be a pair of numbers"]),
        (
            "[[0.5,4],[0.25,8],[0.5,0]]",
            [
                "{key}[1] ends at the fraction 0.25 of the steps, and the stage before it at 0.5",
                "{key}[2] ends at the fraction 0.5 of the steps, and the stage before it at 0.5",
                "{key}[2] has the value 0, which must be a whole number from 1 on",
            ],
        ),
        ("[[0.5,4.0]]", ["{key}[0] has the value 4.0, which must be a whole number from 1 on"]),
    ],
)
def test_mistakes_in_a_schedule_are_found(key: str, schedule: str, expected: list[str]) -> None:
    assert mistakes(f"{key}={schedule}") == [text.format(key=key) for text in expected]


def test_every_stage_must_fit_accumulation_and_context() -> None:
    assert mistakes(f"{BATCHES}=[[0.2,4],[0.3,6]]", "trainer.batch_size=12", "trainer.gradient_accumulation=4") == [
        "trainer.batch_size_schedule[1] (6) is not divisible by trainer.gradient_accumulation (4)"
    ]
    assert mistakes(f"{CONTEXTS}=[[0.2,64],[0.3,65]]", "size.context_length=64") == [
        "trainer.context_length_schedule[1] is 65 tokens, more than size.context_length (64)"
    ]


def test_every_stage_must_fit_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanolm.config.checks.trainer.world_size", lambda: 4)
    problems = check(make_config(f"{BATCHES}=[[0.2,4],[0.3,6]]", "trainer.batch_size=12"))
    assert [problem.found for problem in problems] == [
        "trainer.batch_size_schedule[1] (6) is not divisible by the 4 processes"
    ]


def test_schedules_are_plain_values() -> None:
    config = make_config(*BOTH)
    assert json.dumps(config.trainer.batch_size_schedule) == "[[0.25, 4], [0.5, 8]]"
