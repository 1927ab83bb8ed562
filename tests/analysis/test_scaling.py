import math
import random
from collections.abc import Callable

import pytest

from nanolm.analysis.scaling import Point, bootstrap, fit
from nanolm.errors import RunError

# Hoffmann et al. 2022, section 3.3.
E, A, a, B, b = 1.69, 406.4, 0.34, 410.7, 0.28
SIZES = (1e4, 1e5, 1e6, 1e7)
TOKENS = (1e6, 1e7, 1e8, 1e9)


def loss(size: float, tokens: float) -> float:
    return E + A / size**a + B / tokens**b


def points(sizes: tuple[float, ...] = SIZES, tokens: tuple[float, ...] = TOKENS) -> list[Point]:
    return [Point(n, d, loss(n, d)) for n in sizes for d in tokens]


def test_fit_recovers_known_coefficients() -> None:
    law = fit(points())
    assert pytest.approx(E, rel=1e-6) == law.E
    assert (law.A, law.a) == (pytest.approx(A, rel=1e-5), pytest.approx(a, rel=1e-6))
    assert (law.B, law.b) == (pytest.approx(B, rel=1e-5), pytest.approx(b, rel=1e-6))
    assert law.residual < 1e-8
    assert law.n_points == 16
    assert law.is_law
    assert law.loss(1e8, 1e10) == pytest.approx(loss(1e8, 1e10), rel=1e-6)


def test_fit_recovers_coefficients_of_small_runs() -> None:
    found = [Point(n, d, 1.0 + 3 / n**0.2 + 20 / d**0.3) for n in (4e3, 1.6e4, 6e4) for d in (4e4, 1.6e5, 6e5)]
    law = fit(found)
    assert (law.E, law.a, law.b) == (
        pytest.approx(1.0, rel=1e-4),
        pytest.approx(0.2, rel=1e-4),
        pytest.approx(0.3, rel=1e-4),
    )
    assert any("9 pairs for 5 coefficients" in note for note in law.notes)


def test_fit_is_robust_to_noise_and_an_outlier() -> None:
    draw = random.Random(1)
    noisy = [Point(p.parameters, p.tokens, p.loss * math.exp(draw.gauss(0, 0.003))) for p in points()]
    law = fit(noisy)
    assert 0.001 < law.residual < 0.005
    assert (law.a, law.b) == (pytest.approx(a, abs=0.02), pytest.approx(b, abs=0.02))
    noisy[3] = Point(noisy[3].parameters, noisy[3].tokens, 1.5 * noisy[3].loss)
    law = fit(noisy)
    assert (law.a, law.b) == (pytest.approx(a, abs=0.03), pytest.approx(b, abs=0.03))
    assert law.residual > 0.05


def test_one_size_fits_the_term_of_tokens_only() -> None:
    law = fit(points(sizes=(1e5,)))
    assert (law.A, law.a) == (None, None)
    assert (law.B, law.b) == (pytest.approx(B, rel=1e-4), pytest.approx(b, rel=1e-5))
    assert pytest.approx(E + A / 1e5**a, rel=1e-5) == law.E
    assert "the same size" in law.notes[0]


def test_one_amount_of_tokens_fits_the_term_of_size_only() -> None:
    law = fit(points(tokens=(1e7,)))
    assert (law.B, law.b) == (None, None)
    assert (law.A, law.a) == (pytest.approx(A, rel=1e-4), pytest.approx(a, rel=1e-5))
    assert "the same tokens" in law.notes[0]


@pytest.mark.parametrize(
    "found",
    [
        points((1e4,), (1e6,)),
        points((1e4, 1e5), (1e6, 1e7)),
        points((1e4, 1e5), TOKENS),
        points((1e4,), TOKENS[:3]),
        points(SIZES[:3], (1e6,)) * 5,
    ],
)
def test_too_few_runs_are_an_error(found: list[Point]) -> None:
    with pytest.raises(RunError, match="too few runs for a power law"):
        fit(found)


def test_correlated_size_and_tokens_are_noted() -> None:
    together = [Point(n, 20 * n, loss(n, 20 * n)) for n in (1e4, 3e4, 1e5, 3e5, 1e6, 3e6)]
    assert any("grow together" in note for note in fit(together).notes)


@pytest.mark.parametrize(
    "loss_of", [lambda n, d: 2 + 0.05 * (n / 1e5) ** 0.3 + 300 / d**0.4, lambda n, d: 2.0], ids=["rising", "level"]
)
def test_loss_that_does_not_decrease_is_not_a_law(loss_of: Callable[[float, float], float]) -> None:
    law = fit([Point(n, d, loss_of(n, d)) for n in SIZES for d in TOKENS])
    assert not law.is_law
    assert any("does not follow a power law of size" in note for note in law.notes)
    assert math.isfinite(law.loss(1e3, 1e3))


def test_intervals_contain_the_exponents_of_noisy_runs() -> None:
    draw = random.Random(3)
    noisy = [Point(p.parameters, p.tokens, p.loss * math.exp(draw.gauss(0, 0.002))) for p in points()]
    found = bootstrap(noisy, fit(noisy), n_samples=40)
    for name, value in (("E", E), ("a", a), ("b", b)):
        assert found[name].low < value < found[name].high
        assert found[name].high - found[name].low < 0.2 * value


def test_intervals_of_exact_runs_are_narrow() -> None:
    found = bootstrap(points(sizes=(1e5,)), fit(points(sizes=(1e5,))), n_samples=10)
    assert list(found) == ["E", "b"]
    assert found["b"].low == pytest.approx(b, abs=1e-4)
    assert found["b"].high == pytest.approx(b, abs=1e-4)


@pytest.mark.slow
def test_intervals_cover_the_exponent_in_95_percent_of_studies() -> None:
    draw, hits = random.Random(0), 0
    for _ in range(60):
        noisy = [Point(p.parameters, p.tokens, p.loss * math.exp(draw.gauss(0, 0.002))) for p in points()]
        found = bootstrap(noisy, fit(noisy), n_samples=100)
        hits += found["b"].low <= b <= found["b"].high
    assert 50 <= hits <= 60
