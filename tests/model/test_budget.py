"""Budgets in steps: the largest number that stays within them, for every shape of batches."""

from fractions import Fraction
from pathlib import Path

import pytest

from nanolm.config.batch_schedule import stages, total_tokens
from nanolm.config.budget import budget_of
from nanolm.config.run import Config
from nanolm.errors import NanolmError
from nanolm.model import count
from nanolm.model.budget import cost_of, describe_steps, in_steps, needs_text, read_steps, steps_within, with_steps
from nanolm.model.parameters import n_parameters
from tests.helpers import make_config, text_config, tokenize_text

SIZE = ("size.context_length=16", "trainer.batch_size=4", "size.d_model=16", "size.n_layers=1", "size.n_heads=2")
SCHEDULES = ("trainer.batch_size_schedule=[[0.25,1],[0.5,2]]", "trainer.context_length_schedule=[[0.3,4],[0.6,8]]")


def steps_of(*overrides: str, vocab_size: int | None = None) -> int:
    return in_steps(make_config(*SIZE, *overrides), None, vocab_size).trainer.steps


def test_tokens_become_steps() -> None:
    assert steps_of("trainer.max_tokens=640") == 10
    assert steps_of("trainer.max_tokens=639") == 9
    # Micro-batches are parts of a batch.
    assert steps_of("trainer.max_tokens=640", "trainer.gradient_accumulation=4") == 10


@pytest.mark.parametrize("tokens", [64, 100, 777, 5e6, 1e12])
def test_scheduled_batches_stay_within_the_budget(tokens: float) -> None:
    config = in_steps(make_config(*SIZE, *SCHEDULES, f"trainer.max_tokens={tokens}"), None, None)
    more = with_steps(config, config.trainer.steps + 1)
    assert total_tokens(config) <= tokens < total_tokens(more)


def test_flops_are_those_of_each_context_length() -> None:
    config = in_steps(make_config(*SIZE, *SCHEDULES, "trainer.max_flops=1e9"), None, 65)
    by_length = count.flops_by_context(config, 65)

    def flops(of: Config) -> int:
        return sum(
            (stage.end - stage.start) * stage.tokens_per_step * by_length[stage.context_length] for stage in stages(of)
        )

    assert flops(config) <= 1e9 < flops(with_steps(config, config.trainer.steps + 1))


def test_tokens_per_parameter_count_all_parameters() -> None:
    config = make_config(*SIZE, "trainer.tokens_per_parameter=20")
    tokens = 20 * n_parameters(config, 65)
    assert in_steps(config, None, 65).trainer.steps == tokens // 64


def test_epochs_count_what_is_drawn(tmp_path: Path) -> None:
    line = (*SIZE, "trainer.max_epochs=2", "dataset.val_fraction=0.5")
    text = "abc\ndefgh\n" * 64
    streams = tokenize_text(tmp_path / "a.txt", text, *line)
    n_tokens = len(streams["train"].tokens)
    config = text_config(tmp_path / "a.txt", *line)
    assert in_steps(config, streams["train"], None).trainer.steps == 2 * n_tokens // 64
    blocks = text_config(tmp_path / "a.txt", *line, "trainer.sampling=epochs")
    n_blocks = (n_tokens - 1) // 16
    # Exactly: floating point would lose the last step of such an epoch.
    assert in_steps(blocks, streams["train"], None).trainer.steps == 2 * n_blocks // 4
    lines = (*line, "trainer.sampling=lines", "dataset.split_by=line")
    of_lines = tokenize_text(tmp_path / "a.txt", text, *lines)["train"]
    assert of_lines.rows is not None
    by_line = text_config(tmp_path / "a.txt", *lines)
    assert in_steps(by_line, of_lines, None).trainer.steps == 2 * len(of_lines.rows) // 4
    assert read_steps(by_line) == in_steps(by_line, of_lines, None)


def test_padding_is_no_token_of_a_budget(tmp_path: Path) -> None:
    line = (*SIZE, "trainer.sampling=lines", "dataset.split_by=line", "trainer.max_tokens=1000")
    train = tokenize_text(tmp_path / "a.txt", "abc\ndefgh\n" * 64, *line)["train"]
    config = text_config(tmp_path / "a.txt", *line)
    assert needs_text(config)
    assert not needs_text(make_config("trainer.max_tokens=1000"))
    assert train.rows is not None
    per_row = Fraction(train.rows.n_targets, len(train.rows))
    assert in_steps(config, train, None).trainer.steps == 1000 // (4 * per_row)


@pytest.mark.parametrize(
    ("overrides", "found", "hint"),
    [
        (["trainer.max_tokens=63"], "has 64 tokens (4 sequences of 16 tokens)", "trainer.max_tokens=64 or more"),
        (["trainer.max_flops=1000"], "trainer.max_flops=1000 is less than one step", "trainer.max_flops="),
        (["trainer.tokens_per_parameter=0.001"], "is less than one step", "trainer.tokens_per_parameter=0.0"),
    ],
)
def test_budget_below_one_step_names_the_smallest(overrides: list[str], found: str, hint: str) -> None:
    with pytest.raises(NanolmError) as error:
        steps_of(*overrides, vocab_size=65)
    assert found in error.value.found
    assert error.value.hint.startswith(hint)
    smallest = error.value.hint.split(" ")[0]
    assert steps_of(smallest, vocab_size=65) == 1


def test_search_ends_for_any_amount() -> None:
    config = make_config(*SIZE)
    costs = {16: Fraction(1)}
    for amount in (0, 3, 4, 7, 10**30):
        n_steps = steps_within(config, costs, Fraction(amount))
        if n_steps:
            assert cost_of(config, costs, n_steps) <= amount


def test_fitted_models_have_one_step() -> None:
    assert steps_of("model=ngram", "trainer.max_tokens=5") == 1


def test_steps_of_a_budget_are_described() -> None:
    config = in_steps(make_config(*SIZE, "trainer.max_tokens=640"), None, None)
    assert budget_of(config.trainer).name == "max_tokens"
    assert describe_steps(config, 320) == "trainer.max_tokens=640: 10 steps, 640 tokens, 2 times the train split"
