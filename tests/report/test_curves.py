import random

from nanolm.report.curves import MAX_POINTS, curves, thin
from nanolm.runs.metrics import MetricsRow


def test_short_curves_are_not_thinned() -> None:
    assert thin([3.0, 1.0, 2.0], max_points=3) == [0, 1, 2]
    assert thin([]) == []


def test_thin_keeps_ends_and_spikes() -> None:
    noise = random.Random(1)
    values = [5 / (1 + n / 2000) + noise.random() for n in range(20_000)]
    values[7_777], values[12_345] = 99.0, -99.0
    kept = thin(values)
    assert len(kept) <= MAX_POINTS
    assert len(kept) > MAX_POINTS / 2
    assert kept == sorted(set(kept))
    assert {0, 7_777, 12_345, 19_999} <= set(kept)


def test_thin_keeps_the_amplitude_of_noise() -> None:
    noise = random.Random(2)
    values = [noise.random() for _ in range(10_000)]
    kept = thin(values, max_points=102)
    for start in range(0, 10_000 - 400, 400):
        inside = [values[index] for index in kept if start <= index < start + 400]
        assert max(inside) > 0.95
        assert min(inside) < 0.05


def test_thin_respects_max_points() -> None:
    for count in range(4, 400):
        kept = thin(list(range(count)), max_points=12)
        assert len(kept) <= 12
        assert {0, count - 1} <= set(kept)


def test_curve_has_x_values() -> None:
    rows = [MetricsRow(step=n, split="val", tokens=64 * n, seconds=n / 3, loss=1 / 3) for n in range(1, 4)]
    assert curves(rows, ["loss"])[0] == {
        "y": [0.333333] * 3,
        "step": [1, 2, 3],
        "tokens": [64, 128, 192],
        "seconds": [0.333333, 0.666667, 1.0],
    }


def test_curve_ignores_missing_values() -> None:
    rows = [MetricsRow(step=step, split="val", loss=loss) for step, loss in ((1, None), (2, 2.0), (3, None))]
    assert curves(rows, ["loss"])[0] == {"y": [2.0], "step": [2]}
    assert curves([], ["loss"])[0] == {"y": [], "step": [], "tokens": [], "seconds": []}
