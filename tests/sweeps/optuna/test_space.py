"""What a line lets vary, read from Hydra's words."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from nanolm.errors import SettingsError
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Range, as_overrides, grid, size_of, space_of


def read(*words: str) -> list[Dimension]:
    return space_of(OverridesParser.create().parse_overrides(list(words)))[0]


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("model=gpt,gpt2", Choice("model", ("gpt", "gpt2"))),
        ("optimizer.lr=1e-3,3e-3", Choice("optimizer.lr", ("0.001", "0.003"))),
        ("a=choice(x,y,x)", Choice("a", ("x", "y"))),
        ("+a=true,null", Choice("+a", ("True", "null"))),
        ("a=range(1,9,2)", Range("a", 1, 7, 2)),
        ("a=range(5,1,-2)", Range("a", 3, 5, 2)),
        ("a=range(0.1,0.5,0.1)", Range("a", 0.1, 0.4, 0.1)),
        ("a=range(3,4)", Choice("a", ("3",))),
        ("a=int(interval(1,8))", Range("a", 1, 8, 1)),
        ("a=tag(log,int(interval(1,64)))", Range("a", 1, 64, 1, is_log=True)),
        ("a=interval(0,0.5)", Interval("a", 0.0, 0.5)),
        ("a=tag(log,interval(1e-4,1e-2))", Interval("a", 1e-4, 1e-2, is_log=True)),
    ],
)
def test_a_word_of_hydra_is_a_dimension(word: str, dimension: Dimension) -> None:
    assert read(word) == [dimension]


def test_what_has_one_value_is_fixed_and_the_later_word_counts() -> None:
    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=3", "a=4,5", "c=interval(0,1)", "c=2"])
    space, fixed = space_of(parsed)
    assert space == [Choice("a", ("4", "5"))]
    assert [override.input_line for override in fixed] == ["b=3", "c=2"]


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("a=interval(2,1)", "from 2 to 1"),
        ("a=interval(1,1)", "from 1 to 1"),
        ("a=tag(log,interval(0,1))", "above 0"),
        ("a=tag(logg,interval(1,2))", "the tag logg is not known"),
        ("a=tag(log,choice(1,2))", "words have no log scale"),
        ("a=tag(log,range(1,9,2))", "no steps of 2"),
        ("a=range(3,3)", "has no value in it"),
    ],
)
def test_what_is_no_set_of_values_is_refused(word: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        read(word)
    assert word in str(caught.value)


def test_the_size_of_a_space_is_found_without_its_values() -> None:
    assert size_of(read("a=int(interval(1,100_000_000_000))", "b=x,y")) == 2 * 10**11
    assert size_of(read("a=range(0.1,0.5,0.1)")) == 4


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(SettingsError, match=r"(?s)from 2 to 1.*above 0"):
        read("a=interval(2,1)", "b=tag(log,interval(0,1))")


def test_a_grid_has_every_point_once() -> None:
    space = read("m=x,y", "n=range(1,4)", "f=range(0.1,0.3,0.1)")
    points = grid(space)
    assert size_of(space) == len(points) == 12
    assert len({tuple(point.items()) for point in points}) == 12
    assert as_overrides(points[0]) == ["m=x", "n=1", "f=0.1"]
    assert as_overrides(points[-1]) == ["m=y", "n=3", "f=0.2"]
    assert size_of(read("a=interval(0,1)", "m=x,y")) == float("inf")


@pytest.mark.parametrize("word", ["a=tag(log,interval(1e-4,1e-2))", "a=interval(-1,3)"])
def test_an_interval_has_a_scale_from_0_to_1(word: str) -> None:
    (dimension,) = read(word)
    assert isinstance(dimension, Interval)
    assert dimension.at(0) == dimension.low
    assert dimension.at(1) == dimension.high
    assert dimension.unit(dimension.at(0.3)) == pytest.approx(0.3, abs=1e-3)


def test_half_of_a_log_scale_is_the_geometric_mean() -> None:
    (dimension,) = read("a=tag(log,interval(1e-4,1e-2))")
    assert isinstance(dimension, Interval)
    assert dimension.at(0.5) == 1e-3


@pytest.mark.parametrize("word", ["a=range(2,9,3)", "a=range(0.1,0.5,0.1)", "a=tag(log,int(interval(1,64)))"])
def test_every_value_of_a_range_is_reached_from_its_place(word: str) -> None:
    (dimension,) = read(word)
    assert isinstance(dimension, Range)
    for value in dimension.values():
        assert not isinstance(value, str)
        assert 0 < dimension.unit(value) < 1
        assert dimension.at(dimension.unit(value)) == value
    assert dimension.at(0) == dimension.low
    assert dimension.at(1) == dimension.high
