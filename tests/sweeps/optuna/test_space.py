"""The search space, read from Hydra's overrides."""

import pytest

from nanolm.compose import parse
from nanolm.errors import SettingsError
from nanolm.sweeps.optuna.space import Choice, Dimension, Interval, Range, as_overrides, grid_points, size_of, space_of


def read(*overrides: str) -> list[Dimension]:
    return space_of(parse(overrides))[0]


@pytest.mark.parametrize(
    ("override", "dimension"),
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
def test_space_of_reads_every_form_of_sweep(override: str, dimension: Dimension) -> None:
    assert read(override) == [dimension]


def test_space_of_separates_fixed_overrides() -> None:
    space, fixed = space_of(parse(["a=1,2", "b=3", "a=4,5", "c=interval(0,1)", "c=2"]))
    assert space == [Choice("a", ("4", "5"))]
    assert fixed == ["b=3", "c=2"]


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("a=interval(2,1)", "from 2 to 1"),
        ("a=interval(1,1)", "from 1 to 1"),
        ("a=tag(log,interval(0,1))", "above 0"),
        ("a=tag(logg,interval(1,2))", "unknown tag logg"),
        ("a=tag(log,choice(1,2))", "choices have no log scale"),
        ("a=tag(log,range(1,9,2))", "no steps of 2"),
        ("a=range(3,3)", "has no value in it"),
    ],
)
def test_space_of_refuses_invalid_sweeps(override: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint) as caught:
        read(override)
    assert override in str(caught.value)


def test_size_of_does_not_enumerate_values() -> None:
    assert size_of(read("a=int(interval(1,100_000_000_000))", "b=x,y")) == 2 * 10**11
    assert size_of(read("a=range(0.1,0.5,0.1)")) == 4


def test_space_of_reports_all_mistakes() -> None:
    with pytest.raises(SettingsError, match=r"(?s)from 2 to 1.*above 0"):
        read("a=interval(2,1)", "b=tag(log,interval(0,1))")


def test_grid_points_has_every_point_once() -> None:
    space = read("m=x,y", "n=range(1,4)", "f=range(0.1,0.3,0.1)")
    points = grid_points(space)
    assert size_of(space) == len(points) == 12
    assert len({tuple(point.items()) for point in points}) == 12
    assert as_overrides(points[0]) == ["m=x", "n=1", "f=0.1"]
    assert as_overrides(points[-1]) == ["m=y", "n=3", "f=0.2"]
    assert size_of(read("a=interval(0,1)", "m=x,y")) == float("inf")


@pytest.mark.parametrize("override", ["a=tag(log,interval(1e-4,1e-2))", "a=interval(-1,3)"])
def test_interval_maps_to_the_unit_interval(override: str) -> None:
    (dimension,) = read(override)
    assert isinstance(dimension, Interval)
    assert dimension.from_unit(0) == dimension.low
    assert dimension.from_unit(1) == dimension.high
    assert dimension.to_unit(dimension.from_unit(0.3)) == pytest.approx(0.3, abs=1e-3)


def test_log_interval_has_its_geometric_mean_at_half() -> None:
    (dimension,) = read("a=tag(log,interval(1e-4,1e-2))")
    assert isinstance(dimension, Interval)
    assert dimension.from_unit(0.5) == 1e-3


@pytest.mark.parametrize("override", ["a=range(2,9,3)", "a=range(0.1,0.5,0.1)", "a=tag(log,int(interval(1,64)))"])
def test_range_maps_each_value_to_the_unit_interval_and_back(override: str) -> None:
    (dimension,) = read(override)
    assert isinstance(dimension, Range)
    for value in dimension.values():
        assert not isinstance(value, str)
        assert 0 < dimension.to_unit(value) < 1
        assert dimension.from_unit(dimension.to_unit(value)) == value
    assert dimension.from_unit(0) == dimension.low
    assert dimension.from_unit(1) == dimension.high
