import pytest

from nanolm.config.checks import check
from tests.helpers import make_config, mistakes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("scheduler=product", "scheduler.parts=[step,{name:cosine,final_fraction:0.5}]"), []),
        (("scheduler=product", "scheduler.parts=[]"), ["scheduler.parts is empty"]),
        (
            (
                "scheduler=product",
                "scheduler.parts=[stepp,{name:step,gama:2},{name:step,gamma:2},{gamma:1},[step],"
                "{name:step,warmup_steps:3},{name:step,step_size:1.5,gamma:abc},product,{name:step,gamma:'0.5'}]",
            ),
            [
                "there is no scheduler 'stepp'",
                "step has no setting 'gama'",
                "scheduler.parts[2].gamma is 2.0, and must be at most 1",
                "scheduler.parts[3] is {'gamma': 1}",
                "scheduler.parts[4] is ['step']",
                "scheduler.parts[5].warmup_steps is set, but it applies only to the whole schedule",
                "scheduler.parts[6].step_size is 1.5, and must be a whole number or null",
                "scheduler.parts[6].gamma is 'abc', and must be a number",
                "product cannot be a part of another schedule",
                "scheduler.parts[8].gamma is '0.5', and must be a number",
            ],
        ),
        (
            ("scheduler=chain", "scheduler.parts=[step,cosine]", "scheduler.boundaries=[10,20]"),
            [
                "scheduler.boundaries has 2 steps for 2 parts",
                "scheduler.boundaries [10, 20] leave no steps for a part",
            ],
        ),
        *(
            (
                ("scheduler=chain", "scheduler.parts=[step,cosine,linear]", f"scheduler.boundaries=[{boundaries}]"),
                [f"scheduler.boundaries [{boundaries.replace(',', ', ')}] leave no steps for a part"],
            )
            for boundaries in ("200,100", "200,200", "50,100", "200,1000")
        ),
        (
            ("scheduler=chain", "scheduler.parts=[step,cosine]", "scheduler.boundaries=[51]"),
            [],
        ),
        (
            ("scheduler=product", "scheduler.parts=[nothing]", "trainer.device=gpu", "scheduler.warmup_steps=1000"),
            [
                "scheduler.warmup_steps (1000) must be less than trainer.max_steps (1000)",
                "there is no scheduler 'nothing'",
                "trainer.device is 'gpu'",
            ],
        ),
    ],
)
def test_schedule_mistakes_are_refused(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert mistakes(*overrides) == expected


def test_mistyped_part_of_a_schedule_has_a_hint() -> None:
    stepp, gama = check(make_config("scheduler=product", "scheduler.parts=[stepp,{name:step,gama:0.5}]"))
    assert "did you mean step?" in stepp.hint
    assert "did you mean gamma?" in gama.hint


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("scheduler.warmup_fraction=0.1", "scheduler.warmup_steps=9"),
            ["scheduler.warmup_steps (9) and scheduler.warmup_fraction (0.1) are both set"],
        ),
        (("scheduler.warmup_fraction=0.1", "scheduler=one_cycle"), []),
        (("scheduler.warmup_fraction=0.4", "scheduler.cooldown_fraction=0.6"), []),
        (
            ("scheduler.warmup_fraction=0.5", "scheduler.cooldown_fraction=0.6"),
            ["the warmup (500 steps) and the cooldown (600) are together longer than trainer.max_steps (1000)"],
        ),
        (
            ("scheduler.warmup_fraction=1", "scheduler.cooldown_fraction=-0.1"),
            [
                "scheduler.warmup_fraction is 1.0, and must be less than 1",
                "scheduler.cooldown_fraction is -0.1, and must be at least 0",
            ],
        ),
    ],
)
def test_fractions_of_warmup_and_cooldown_are_checked(overrides: tuple[str, ...], expected: list[str]) -> None:
    assert mistakes(*overrides) == expected
