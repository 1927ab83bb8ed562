"""Loss as a power law of parameters and tokens, fitted to runs (Hoffmann et al. 2022, section 3.3, approach 3).

    L(N, D) = E + A / N^a + B / D^b

The sum of Huber losses of log L is minimised, over log E, log A, log B, a and b, from many starts, so that one poor run
weighs little and no start decides.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanolm.errors import RunError

# Where a Huber loss of a difference of logarithms turns from square to straight (the paper's).
DELTA = 1e-3
# Different values that a term is fitted to: fewer leave its coefficient and its exponent open.
ENOUGH = 3
# Correlation of log N and log D from which on their terms are not told apart.
TOGETHER = 0.99

# Logarithms of E, A and B, and exponents; of all their combinations the best few are followed to the end.
STARTS = {"E": (-1.0, 0.7), "A": (1.0, 7.0), "a": (0.2, 0.6), "B": (1.0, 7.0), "b": (0.2, 0.6)}
FOLLOWED = 3


# The largest logarithm of a coefficient and exponent that are looked at, within which no number overflows, and the part
# of E that a term must fall by for its exponent to say anything.
MOST_LOG, MOST_EXPONENT = 300.0, 8.0
SMALLEST_FALL = 1e-3


@dataclasses.dataclass(frozen=True)
class Point:
    """A run: parameters N, tokens D and its loss."""

    parameters: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A power law, and how well it holds.

    Attributes:
        E: the loss that no size and no text go under.
        A: of the term of N; None where there is none, as with b and B for the term of D.
        residual: root of the mean square of log(fitted / found): 0.01 is one percent of the loss.
        n_points: runs that it is fitted to.
        is_law: whether each term falls, so that its exponent says something.
        notes: what it does not say.
    """

    E: float
    A: float | None
    a: float | None
    B: float | None
    b: float | None
    residual: float
    n_points: int
    is_law: bool = True
    notes: tuple[str, ...] = ()

    def loss(self, parameters: float, tokens: float) -> float:
        """What it foretells."""
        of_size = 0.0 if self.A is None or self.a is None else self.A / parameters**self.a
        of_text = 0.0 if self.B is None or self.b is None else self.B / tokens**self.b
        return self.E + of_size + of_text


def fit(points: Sequence[Point]) -> Fit:
    """Fits the law with both terms, or with the one that the runs can say something of.

    Raises:
        RunError: there are too few runs, sizes or amounts of text for any.
    """
    sizes, texts = {point.parameters for point in points}, {point.tokens for point in points}
    terms = tuple(name for name, values in (("N", sizes), ("D", texts)) if len(values) >= ENOUGH)
    n_coefficients = 1 + 2 * len(terms)
    # A term with two values can be told from none, and cannot be fitted: it would pass for the other one's.
    is_between = any(1 < len(values) < ENOUGH for values in (sizes, texts))
    n_places = len({(point.parameters, point.tokens) for point in points})
    if not terms or is_between or n_places <= n_coefficients:
        raise RunError(
            f"too few runs for a power law: {n_places} different pairs of size and tokens, with {len(sizes)} sizes and "
            f"{len(texts)} amounts of tokens",
            where="nanolm scaling",
            hint="4 or more sizes with one amount of tokens, 4 amounts with one size, or 3 of each in 6 pairs",
        )
    notes = []
    if len(terms) == 1:
        only = f"every run has the same {'tokens' if terms == ('N',) else 'size'}"
        notes.append(f"{only}: E holds what the other term comes to there")
    elif abs(np.corrcoef(*np.log([[p.parameters for p in points], [p.tokens for p in points]]))[0, 1]) > TOGETHER:
        notes.append("size and tokens grow together: what is owed to which cannot be told")
    if n_places < 2 * n_coefficients:
        notes.append(f"{n_places} pairs for {n_coefficients} coefficients: they are loose")
    theta = _minimum(points, terms)
    is_law = True
    named = {name: (math.exp(theta[1 + 2 * at]), float(theta[2 + 2 * at])) for at, name in enumerate(terms)}
    for name, (coefficient, exponent) in named.items():
        values = [point.parameters if name == "N" else point.tokens for point in points]
        falls = coefficient / min(values) ** exponent - coefficient / max(values) ** exponent
        if not SMALLEST_FALL * math.exp(theta[0]) < falls or exponent > MOST_EXPONENT / 2:
            of = "size" if name == "N" else "tokens"
            notes.append(f"the loss does not fall with {of} as a power does: its exponent says nothing")
            is_law = False
    (A, a), (B, b) = (named.get(name, (None, None)) for name in "ND")
    law = Fit(math.exp(theta[0]), A, a, B, b, 0.0, len(points), is_law, tuple(notes))
    errors = [math.log(law.loss(point.parameters, point.tokens) / point.loss) for point in points]
    return dataclasses.replace(law, residual=math.sqrt(sum(error**2 for error in errors) / len(errors)))


def _minimum(points: Sequence[Point], terms: Sequence[str]) -> np.ndarray:
    """The best of all starts: log E, then log of the coefficient and exponent of each term."""
    from scipy.optimize import minimize

    log_loss_P = np.log([point.loss for point in points])
    logs_TxP = np.log([[point.parameters if name == "N" else point.tokens for point in points] for name in terms])

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        parts_KxP = np.vstack([np.full_like(log_loss_P, theta[0]), theta[1::2, None] - theta[2::2, None] * logs_TxP])
        fitted_P = np.logaddexp.reduce(parts_KxP, axis=0)
        errors_P = fitted_P - log_loss_P
        is_small_P = np.abs(errors_P) <= DELTA
        huber_P = np.where(is_small_P, errors_P**2 / 2, DELTA * (np.abs(errors_P) - DELTA / 2))
        slopes_P = np.where(is_small_P, errors_P, DELTA * np.sign(errors_P))
        shares_KxP = np.exp(parts_KxP - fitted_P) * slopes_P
        gradient = np.empty_like(theta)
        gradient[0] = shares_KxP[0].sum()
        gradient[1::2] = shares_KxP[1:].sum(axis=1)
        gradient[2::2] = -(shares_KxP[1:] * logs_TxP).sum(axis=1)
        # In units in which a step that matters is near one: differences of logarithms are small.
        return float(huber_P.sum()) / DELTA**2, gradient / DELTA**2

    names = ["E", *("Aa" if "N" in terms else ""), *("Bb" if "D" in terms else "")]
    bounds = [(None, None), *[(None, MOST_LOG), (0.0, MOST_EXPONENT)] * len(terms)]

    def followed(start: np.ndarray, n_steps: int) -> Any:
        options = {"maxiter": n_steps, "maxfun": 2 * n_steps, "ftol": 1e-15, "gtol": 1e-9}
        return minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    found = [followed(np.array(start), 100) for start in itertools.product(*(STARTS[name] for name in names))]
    best = sorted(found, key=lambda one: one.fun)[:FOLLOWED]
    return min((followed(one.x, 5000) for one in best), key=lambda one: one.fun).x
