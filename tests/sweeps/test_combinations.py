"""The jobs that a command, a sweep's params and its variants combine to."""

import pytest

from nanolm.errors import SettingsError
from nanolm.sweeps.combinations import combinations


def overrides_of(*overrides: str) -> list[tuple[str, ...]]:
    return [combination.overrides for combination in combinations(overrides)]


def test_combinations_has_every_combination_once() -> None:
    found = combinations(["model=gpt,gpt2", "optimizer.lr=1e-3,0.003", "size=tiny"])
    assert [combination.overrides for combination in found] == [
        ("model=gpt", "optimizer.lr=0.001", "size=tiny"),
        ("model=gpt", "optimizer.lr=0.003", "size=tiny"),
        ("model=gpt2", "optimizer.lr=0.001", "size=tiny"),
        ("model=gpt2", "optimizer.lr=0.003", "size=tiny"),
    ]
    assert found[0].swept == {"model": "gpt", "optimizer.lr": "0.001"}


def test_combinations_prefers_the_command_then_variants() -> None:
    params = {"seed": "1,2", "optimizer.lr": "1e-3,1e-2"}
    variants = {"plain": [], "long": ["size.context_length=32", "optimizer.lr=0.1"]}
    found = combinations(["seed=7", "model=gpt"], params, variants)
    assert [combination.overrides for combination in found] == [
        ("seed=7", "optimizer.lr=0.001", "model=gpt"),
        ("seed=7", "optimizer.lr=0.01", "model=gpt"),
        ("seed=7", "optimizer.lr=0.1", "size.context_length=32", "model=gpt"),
    ]
    assert [combination.swept for combination in found] == [
        {"variant": "plain", "optimizer.lr": "0.001"},
        {"variant": "plain", "optimizer.lr": "0.01"},
        {"variant": "long"},
    ]


def test_combinations_expands_choices_and_integer_ranges() -> None:
    assert overrides_of("seed=range(1,4)") == [("seed=1",), ("seed=2",), ("seed=3",)]
    assert overrides_of("seed=choice(4,5)") == [("seed=4",), ("seed=5",)]
    assert overrides_of("optimizer.betas=[0.9,0.95],[0.9,0.99]") == [
        ("optimizer.betas=[0.9,0.95]",),
        ("optimizer.betas=[0.9,0.99]",),
    ]
    with pytest.raises(SettingsError, match=r"optimizer.lr=interval\(0,1\) is a continuous range, which a grid cannot"):
        combinations(["optimizer.lr=interval(0,1)"])


def test_combinations_refuses_too_many_before_making_them() -> None:
    axes = [f"a.b{n}=range(0,1000)" for n in range(9)]
    with pytest.raises(SettingsError, match=r"combine to 1(,000){9} jobs[\s\S]*a\.b0, a\.b1"):
        combinations(axes)


def test_combinations_refuses_an_empty_range() -> None:
    with pytest.raises(SettingsError, match=r"seed=range\(3,1\) has no value in it"):
        combinations(["seed=range(3,1)", "optimizer.lr=1,2"])
