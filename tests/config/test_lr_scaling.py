import pytest

from nanolm.config.lr_scaling import resolve_optimizer
from tests.helpers import make_config, mistakes


@pytest.mark.parametrize(
    ("overrides", "hidden", "head"),
    [
        ("optimizer=adamw optimizer.lr_scaling=width", 0.25, 0.25),
        ("optimizer=muon optimizer.lr_scaling=width", 0.5, 0.25),
        ("optimizer=muon optimizer.lr_scaling=width optimizer.lr_multipliers.hidden=3", 1.5, 0.25),
        ("optimizer=muon optimizer.lr_scaling=none", 1, 1),
        ("optimizer=muon optimizer.lr_scaling=auto", 0.5, 0.25),
        ("optimizer=muon optimizer.lr_scaling=auto model=gpt2", 1, 1),
        ("optimizer=muon optimizer.lr_scaling=auto model.initialization=xavier", 1, 1),
        ("optimizer=sgd optimizer.lr_scaling=auto", 1, 1),
        ("optimizer=muon optimizer.lr_scaling=auto model=bigram", 1, 1),
    ],
)
def test_lr_scaling_multiplies_lr_by_a_power_of_the_width(overrides: str, hidden: float, head: float) -> None:
    multipliers = resolve_optimizer(make_config("size.d_model=512", *overrides.split())).lr_multipliers
    assert (multipliers.hidden, multipliers.head, multipliers.embedding) == (hidden, head, 1)


def test_lr_scaling_without_width_or_rule_is_a_mistake() -> None:
    width = "optimizer.lr_scaling=width"
    assert mistakes("model=bigram", width) == [
        "model=bigram has no width, which optimizer.lr_scaling=width scales lr by"
    ]
    assert mistakes("model=gpt", "optimizer=sgd", width) == ["optimizer=sgd has no rule for lr_scaling=width"]
    assert mistakes("model=gpt", width) == []


def test_momentum_warmup_fraction_is_a_share_of_the_run() -> None:
    config = make_config("optimizer=muon", "optimizer.momentum_warmup_fraction=0.25", "trainer.max_steps=1000")
    assert vars(resolve_optimizer(config))["momentum_warmup_steps"] == 250
