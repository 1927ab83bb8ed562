from hypothesis import given
from hypothesis import strategies as st

from nanolm.model.polynomial import LETTERS, ZERO, C, D, H, N, Polynomial, T, V

SIZES = dict(zip(LETTERS, (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37), strict=True))

polynomials = st.dictionaries(st.sampled_from(["", "C", "CC", "NC", "VT"]), st.integers(-9, 9)).map(Polynomial)


def test_polynomial_prints_powers_signs_and_coefficients() -> None:
    assert str(4 * N * C * C + N * C) == "4 N C^2 + N C"
    assert str(2 * T * (H * D) + -1 * V) == "2 T H D - V"
    assert str(Polynomial({"": 1}) + C) == "1 + C"
    assert str(C + -1 * C) == str(ZERO) == ""


def test_polynomial_terms_keep_the_order_of_their_first_appearance() -> None:
    assert str(V + C + 2 * V) == "3 V + C"


@given(polynomials, polynomials, st.integers(-9, 9))
def test_polynomial_arithmetic_agrees_with_evaluation(a: Polynomial, b: Polynomial, factor: int) -> None:
    x, y = a.evaluate(SIZES), b.evaluate(SIZES)
    assert (a + b).evaluate(SIZES) == x + y
    assert (a * b).evaluate(SIZES) == x * y
    assert (factor * a).evaluate(SIZES) == (a * factor).evaluate(SIZES) == factor * x
