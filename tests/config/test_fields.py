import dataclasses
import enum
import itertools
import math

import pytest

from nanolm.config.checks import check
from nanolm.config.fields import flat, outside_bounds, setting_of
from nanolm.config.optimizer import LrMultipliers
from nanolm.config.size import SizeConfig
from nanolm.config.trainer import TrainerConfig
from nanolm.registry import GROUPS
from tests.helpers import make_config, mistakes


def test_non_finite_numbers_are_refused() -> None:
    schemas = [schema for registry in GROUPS.values() for schema in registry.schemas.values()]
    for schema in (*schemas, SizeConfig, TrainerConfig, LrMultipliers):
        fields = [field for field in dataclasses.fields(schema) if "float" in str(field.type)]
        for field, value in itertools.product(fields, (math.inf, -math.inf, math.nan)):
            config = schema(**{field.name: value})
            assert [problem.found for problem in outside_bounds(config)] == [
                f"{field.name} is {value}, and must be a finite number"
            ]


def test_non_finite_numbers_in_lists_are_refused() -> None:
    parts = "scheduler.parts=[{name:step,gamma:inf},{name:cosine,final_fraction:nan}]"
    assert mistakes("scheduler=product", parts) == [
        "scheduler.parts[0].gamma is inf, and must be a finite number",
        "scheduler.parts[1].final_fraction is nan, and must be a finite number",
    ]
    assert mistakes("optimizer.lr_multipliers.head=inf", f"trainer.max_steps={10**19}") == [
        "optimizer.lr_multipliers.head is inf, and must be a finite number",
        f"trainer.max_steps is {10**19}, and must be less than 2**63 in size",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.clip_norm=0", "trainer.clip_norm=null disables clipping by norm"),
        ("trainer.clip_norm=inf", "trainer.clip_norm=null disables clipping by norm"),
        ("trainer.clip_value=-1", "trainer.clip_value=null disables clipping by value"),
        ("trainer.save_every=0", "trainer.save_every=70 (trainer.max_steps) saves only"),
        ("trainer.eval_every=-1", "trainer.eval_every=70 (trainer.max_steps) evaluates only at the end"),
        ("trainer.log_every=0", "trainer.log_every=70 (trainer.max_steps) writes one row"),
        ("trainer.keep_last=0", "trainer.keep_last=1 keeps the best and the latest checkpoint, null keeps all"),
        ("trainer.keep_every=0", "trainer.keep_every=null"),
        ("trainer.save_every_minutes=0", "trainer.save_every_minutes=null"),
        ("trainer.ema_decay=0", "trainer.ema_decay=null"),
        ("trainer.ema_decay=1", "trainer.ema_decay=null"),
        ("trainer.sample_tokens=-1", "trainer.sample_tokens=0"),
        ("trainer.gradient_accumulation=0", "trainer.gradient_accumulation=1"),
        ("model.dropout=-1", "model.dropout=0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay=0"),
        ("scheduler.warmup_steps=-1", "scheduler.warmup_steps=0"),
    ],
)
def test_hint_says_how_to_disable_a_setting(override: str, expected: str) -> None:
    (problem,) = check(make_config("trainer.max_steps=70", override))
    assert problem.hint.startswith(expected)


def test_hint_to_disable_names_a_valid_value() -> None:
    for schema in (TrainerConfig, SizeConfig, *(s for registry in GROUPS.values() for s in registry.schemas.values())):
        for field in dataclasses.fields(schema):
            word = setting_of(field).off.split(" ")[0]
            if word and "{" not in word:
                value = {"null": None, "[]": []}.get(word, word) if word in ("null", "[]") else float(word)
                assert value is not None or "None" in str(field.type), field.name
                assert list(outside_bounds(schema(**{field.name: value}))) == []


class Color(enum.Enum):
    red = "red"
    blue = "blue"


@dataclasses.dataclass
class Colored:
    one: Color = Color.red
    several: list[Color] = dataclasses.field(default_factory=lambda: [Color.red, Color.blue])


def test_flat_names_the_enums_of_lists_too() -> None:
    assert flat(Colored()) == {"one": "red", "several": ["red", "blue"]}
