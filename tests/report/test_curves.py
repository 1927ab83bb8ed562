import random

from nanolm.report.curves import MOST_POINTS, curve, thinned
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.records import from_json


def test_short_curves_are_kept_whole() -> None:
    assert thinned([3.0, 1.0, 2.0], most=3) == [0, 1, 2]
    assert thinned([]) == []


def test_a_long_curve_keeps_its_ends_and_its_spikes() -> None:
    noise = random.Random(1)
    values = [5 / (1 + n / 2000) + noise.random() for n in range(20_000)]
    values[7_777], values[12_345] = 99.0, -99.0
    kept = thinned(values)
    assert len(kept) <= MOST_POINTS
    assert len(kept) > MOST_POINTS / 2
    assert kept == sorted(set(kept))
    assert {0, 7_777, 12_345, 19_999} <= set(kept)


def test_the_height_of_noise_stays_what_it_was() -> None:
    noise = random.Random(2)
    values = [noise.random() for _ in range(10_000)]
    kept = thinned(values, most=102)
    for start in range(0, 10_000 - 400, 400):
        inside = [values[index] for index in kept if start <= index < start + 400]
        assert max(inside) > 0.95
        assert min(inside) < 0.05


def test_any_length_fits() -> None:
    for count in range(4, 400):
        kept = thinned(list(range(count)), most=12)
        assert len(kept) <= 12
        assert {0, count - 1} <= set(kept)


def test_a_curve_has_its_places() -> None:
    rows = [MetricsRow(step=n, split="val", tokens=64 * n, seconds=n / 3, loss=1 / 3) for n in range(1, 4)]
    assert curve(rows, "loss") == {
        "y": [0.333333] * 3,
        "step": [1, 2, 3],
        "tokens": [64, 128, 192],
        "seconds": [0.333333, 0.666667, 1.0],
    }


def test_what_is_no_number_is_left_out() -> None:
    tables = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 2.0}, {"step": 3}, {"step": 4, "loss": "low"}]
    rows = [from_json(MetricsRow, {"split": "val", **table}) for table in tables]
    assert curve(rows, "loss") == {"y": [2.0], "step": [2]}
    assert curve([], "loss") == {"y": [], "step": [], "tokens": [], "seconds": []}
