"""A range of a sweep is looked at before it is expanded: some have no end."""

import pytest

from nanolm.compose import compose_command
from nanolm.compose.overrides import parse
from nanolm.errors import SettingsError


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimizer.lr=range(0.1,0.3,0.0)", "has a step of 0 and would never end"),
        ("seed=range(1,9,0)", "has a step of 0"),
        ("seed=sort(range(1,9,0))", "has a step of 0"),
        ("seed=shuffle(range(1,9,0))", "has a step of 0"),
        ("seed=range(1,9,-1)", "has no value in it"),
        ("seed=range(9,1)", "has no value in it"),
        ("optimizer.lr=range(0.3,0.1,0.1)", "has no value in it"),
        ("seed=range(3)", None),
        ("seed=range(0)", "has no value in it"),
        ("seed=range(9,1,-2)", None),
        ("seed=range(0,10000)", None),
        ("seed=range(0,10001)", "has more than 10,000 values"),
        ("seed=range(0,1000000000000)", "has more than 10,000 values"),
        ("optimizer.lr=range(0,1,1e-300)", "has more than 10,000 values"),
        ("optimizer.lr=range(-1e308,1e308,1)", "has more than 10,000 values"),
        ("optimizer.lr=range(0,inf)", "is not finite"),
        ("optimizer.lr=range(0,1,nan)", "is not finite"),
        ("optimizer.lr=interval(0,inf)", "is not finite"),
        ("optimizer.lr=tag(log,interval(1e-4,nan))", "is not finite"),
        ("optimizer.lr=interval(1e-4,1e-2)", None),
        (f"seed=range(0,1{'0' * 400})", "is not finite"),
    ],
)
def test_a_range_must_have_an_end_and_values(word: str, expected: str | None) -> None:
    if expected is None:
        assert [override.input_line for override in parse([word])] == [word]
        return
    with pytest.raises(SettingsError, match=expected) as caught:
        parse([word])
    assert caught.value.hint


def test_all_ranges_of_a_line_are_reported_at_once() -> None:
    with pytest.raises(SettingsError, match=r"(?s)0\.3,0\.0\) has a step.*range\(5,1\) has no"):
        compose_command(["optimizer.lr=range(0.1,0.3,0.0)", "seed=range(5,1)"], multirun=True)
