"""Sums of products of dimensions, which can be printed and evaluated.

`nanolm count` prints the same formulas that it computes. sympy could do this too, but takes half a second to import.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

# Order of the letters in a product; nanolm/model/__init__.py has their meanings.
LETTERS = "PANVTWCHGDEF"


class Polynomial:
    """An immutable polynomial with integer coefficients, such as 4 N C^2 + 4 N C.

    Args:
        terms: coefficient of each product of letters; {"CC": 4} is 4 C^2.
    """

    def __init__(self, terms: Mapping[str, int]) -> None:
        self.terms = {product: factor for product, factor in terms.items() if factor}

    def __add__(self, other: Polynomial) -> Polynomial:
        added = Counter(self.terms)
        added.update(other.terms)
        return Polynomial(added)

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        factors = other.terms if isinstance(other, Polynomial) else {"": other}
        multiplied: Counter[str] = Counter()
        for a, a_factor in self.terms.items():
            for b, b_factor in factors.items():
                multiplied["".join(sorted(a + b, key=LETTERS.index))] += a_factor * b_factor
        return Polynomial(multiplied)

    __rmul__ = __mul__

    def evaluate(self, sizes: Mapping[str, int]) -> int:
        """Compute the value for the size of each dimension."""
        return sum(factor * math.prod(sizes[letter] for letter in product) for product, factor in self.terms.items())

    def __str__(self) -> str:
        text = ""
        for product, factor in self.terms.items():
            powers = {letter: product.count(letter) for letter in product}
            written = [letter if power == 1 else f"{letter}^{power}" for letter, power in powers.items()]
            number = [] if abs(factor) == 1 and written else [str(abs(factor))]
            text += (" - " if factor < 0 else " + ") + " ".join([*number, *written])
        return text.removeprefix(" + ")


ZERO = Polynomial({})
ONE = Polynomial({"": 1})
P, A, N, V, T, W, C, H, G, D, E, F = (Polynomial({letter: 1}) for letter in LETTERS)
