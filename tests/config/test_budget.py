"""Which setting is the budget of a run: one, and the one that was typed replaces the others."""

import dataclasses
from pathlib import Path

import pytest

from nanolm.compose import compose_command, compose_jobs
from nanolm.config.budget import Budget, as_asked, budget_of, format_amount, set_budgets
from nanolm.model.budget import with_steps
from tests.helpers import make_config, mistakes


def test_budget_replaces_the_default_and_that_of_an_experiment() -> None:
    assert set_budgets(make_config().trainer) == [Budget("max_steps", 1000)]
    assert set_budgets(make_config("trainer.max_tokens=5e6").trainer) == [Budget("max_tokens", 5e6)]
    line = compose_command(["experiment=nanogpt_cpu", "trainer.max_epochs=2"])
    assert set_budgets(line.config.trainer) == [Budget("max_epochs", 2)]
    assert {"trainer.max_steps", "trainer.max_epochs"} <= line.given
    jobs = compose_jobs([["trainer.max_epochs=2"], ["trainer.max_steps=1000"]])
    assert [budget_of(job.config.trainer).name for job in jobs] == ["max_epochs", "max_steps"]


@pytest.mark.slow
def test_budget_of_a_file_replaces_the_default_only(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    head = "# @package _global_\ntrainer:\n  max_tokens: 5e6\n"
    (folder / "tokens.yaml").write_text(head)
    (folder / "both.yaml").write_text(head + "  max_steps: 20\n")
    line = compose_command(["experiment=tokens"], str(tmp_path))
    assert set_budgets(line.config.trainer) == [Budget("max_tokens", 5e6)]
    assert len(set_budgets(compose_command(["experiment=both"], str(tmp_path)).config.trainer)) == 2


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (("trainer.max_steps=1000", "trainer.max_tokens=5e6"), "trainer.max_steps=1000 and trainer.max_tokens=5000000"),
        (("trainer.max_epochs=0.5", "trainer.max_flops=1e15"), "trainer.max_epochs=0.5 and trainer.max_flops=1e15"),
        (("trainer.max_steps=null",), "the run has no budget"),
        (("trainer.max_tokens=0",), "must be more than 0"),
        (("trainer.tokens_per_parameter=1e10",), "at most 1000000000"),
    ],
)
def test_two_budgets_and_none_are_refused(overrides: tuple[str, ...], found: str) -> None:
    assert found in mistakes(*overrides)[0]


def test_asked_settings_have_no_derived_steps() -> None:
    asked = make_config("trainer.max_tokens=5e6")
    resolved = with_steps(asked, 12)
    assert resolved.trainer.steps == 12
    assert budget_of(resolved.trainer).name == "max_tokens"
    assert as_asked(resolved) == asked
    plain = make_config()
    assert as_asked(plain) is plain
    with pytest.raises(AssertionError):
        dataclasses.replace(asked).trainer.steps  # noqa: B018  the property raises


@pytest.mark.parametrize(
    ("value", "text"), [(5e6, "5000000"), (2.5, "2.5"), (1e15, "1e15"), (1234567890123.0, "1234567890123"), (20, "20")]
)
def test_amounts_are_formatted_as_typed(value: float, text: str) -> None:
    assert format_amount(value) == text
