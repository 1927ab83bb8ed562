import pytest

from nanolm.config.checks import check
from tests.helpers import make_config, mistakes


def test_default_config_has_no_mistakes() -> None:
    assert check(make_config()) == []


def test_bounds_are_reported_together() -> None:
    assert mistakes("trainer.max_steps=0", "optimizer.lr=0", "model.dropout=1", "dataset.val_fraction=0") == [
        "dataset.val_fraction is 0.0, and must be more than 0",
        "model.dropout is 1.0, and must be less than 1",
        "optimizer.lr is 0.0, and must be more than 0",
        "trainer.max_steps is 0, and must be at least 1",
    ]


def test_mistakes_across_settings_are_reported_together() -> None:
    problems = check(
        make_config(
            "size.n_heads=3",
            "trainer.batch_size=10",
            "trainer.gradient_accumulation=4",
            "scheduler.warmup_steps=1000",
            "trainer.device=gpu",
        )
    )
    assert [problem.where.split(",")[0] for problem in problems] == [
        "size.d_model",
        "trainer.batch_size",
        "scheduler.warmup_steps",
        "trainer.device",
    ]
    assert "n_heads = 1, 2 or 4, or d_model = 129" in problems[0].hint


@pytest.mark.parametrize("word", ["optimizer.name=adamw", "optimizer.name=lion", "model.name=ngram"])
def test_name_of_another_option_is_refused(word: str) -> None:
    assert "the settings are not those of" in str(check(make_config(word))[0])


def test_mappings_in_a_list_of_strings_are_refused() -> None:
    (found,) = check(make_config("logger=wandb", "logger.tags=[{a:1}]"))
    assert found.found == "logger.tags is [{'a': 1}], and must be a list of strings, as in [a,b]"
