"""Scaling law fits (Hoffmann et al. 2022, section 3.3, approach 3).

    L(N, D) = E + A / N^a + B / D^b

The sum of Huber losses of log L is minimised over log E, log A, log B, a and b by L-BFGS from a grid of initial values.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nanolm.errors import RunError

# Threshold of the Huber loss on log L, as in the paper.
DELTA = 1e-3
# Minimum number of different values of N or D: fewer do not determine a coefficient and an exponent.
MIN_VALUES = 3
# Correlation of log N and log D above which their terms cannot be separated.
MAX_CORRELATION = 0.99

# Initial log E, log A, log B and exponents; the best few of all combinations are optimised to convergence.
INITIAL = {"E": (-1.0, 0.7), "A": (1.0, 7.0), "a": (0.2, 0.6), "B": (1.0, 7.0), "b": (0.2, 0.6)}
N_CONTINUED = 3

# Samples of the bootstrap.
N_BOOTSTRAP = 200

# Upper bounds of log A, log B and the exponents, below which nothing overflows.
MAX_LOG, MAX_EXPONENT = 300.0, 8.0
# Minimum decrease of a term over the runs, relative to E, for its exponent to be meaningful.
MIN_DECREASE = 1e-3


@dataclasses.dataclass(frozen=True)
class Point:
    """A run: parameters N, tokens D and its loss."""

    parameters: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted scaling law.

    Attributes:
        E: the irreducible loss.
        A: coefficient of the term of N, with exponent a; both None if N does not vary. Likewise B and b for D.
        residual: root mean square of log(fitted / measured): 0.01 is one percent of the loss.
        n_points: number of runs.
        is_law: whether each term decreases, so that its exponent is meaningful.
        notes: limitations of the fit.
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
        """Predict the loss."""
        of_size = 0.0 if self.A is None or self.a is None else self.A / parameters**self.a
        of_text = 0.0 if self.B is None or self.b is None else self.B / tokens**self.b
        return self.E + of_size + of_text


def fit(points: Sequence[Point]) -> Fit:
    """Fit the law with both terms, or with one if only sizes or only token budgets vary.

    Raises:
        RunError: there are too few different sizes or token budgets.
    """
    values = {"N": [point.parameters for point in points], "D": [point.tokens for point in points]}
    n_sizes, n_budgets = len(set(values["N"])), len(set(values["D"]))
    terms = {name: values[name] for name, n in (("N", n_sizes), ("D", n_budgets)) if n >= MIN_VALUES}
    n_coefficients = 1 + 2 * len(terms)
    # Two values cannot be fitted, but their effect would be attributed to the other term.
    has_two_values = any(1 < n < MIN_VALUES for n in (n_sizes, n_budgets))
    n_places = len(set(zip(values["N"], values["D"], strict=True)))
    if not terms or has_two_values or n_places <= n_coefficients:
        raise RunError(
            f"too few runs for a power law: {n_places} different pairs of size and tokens, with {n_sizes} sizes and "
            f"{n_budgets} token {'budget' if n_budgets == 1 else 'budgets'}",
            where="nanolm scaling",
            hint="train 4 sizes with one token budget, 4 budgets with one size, or 3 of each in 6 pairs",
        )
    notes = []
    if len(terms) == 1:
        notes.append(f"every run has the same {'tokens' if 'N' in terms else 'size'}: E includes the other term")
    elif abs(np.corrcoef(*np.log(list(terms.values())))[0, 1]) > MAX_CORRELATION:
        notes.append("size and tokens grow together: their effects cannot be separated")
    if n_places < 2 * n_coefficients:
        notes.append(f"only {n_places} pairs for {n_coefficients} coefficients: they are uncertain")
    theta = _minimize([point.loss for point in points], terms)
    is_law = True
    named = {name: (math.exp(theta[1 + 2 * at]), float(theta[2 + 2 * at])) for at, name in enumerate(terms)}
    for name, (coefficient, exponent) in named.items():
        lowest, highest = min(values[name]), max(values[name])
        decrease = coefficient / lowest**exponent - coefficient / highest**exponent
        if not MIN_DECREASE * math.exp(theta[0]) < decrease or exponent > MAX_EXPONENT / 2:
            of = "size" if name == "N" else "tokens"
            notes.append(f"the loss does not follow a power law of {of}: its exponent is meaningless")
            is_law = False
    (A, a), (B, b) = (named.get(name, (None, None)) for name in "ND")
    law = Fit(math.exp(theta[0]), A, a, B, b, 0.0, len(points), is_law, tuple(notes))
    errors = [math.log(law.loss(point.parameters, point.tokens) / point.loss) for point in points]
    return dataclasses.replace(law, residual=math.sqrt(sum(error**2 for error in errors) / len(errors)))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A 95% bootstrap interval."""

    low: float
    high: float


def bootstrap(points: Sequence[Point], law: Fit, n_samples: int = N_BOOTSTRAP, seed: int = 0) -> dict[str, Interval]:
    """Return 95% intervals of E and of the exponents (percentile bootstrap of residuals, Efron 1979).

    The residuals, log of measured / fitted, are drawn with replacement, so that every sample has the sizes and budgets
    that were trained. They are scaled up, as fitting the coefficients takes part of the noise away. Each fit starts at
    the law.

    Returns:
        By name: E, and a and b where the law has them; empty for a law without meaning.
    """
    if not law.is_law:
        return {}
    noise = np.random.default_rng(seed)
    terms = {name: values for name, values in _terms(points).items() if getattr(law, name) is not None}
    log_fitted_p = np.log([law.loss(point.parameters, point.tokens) for point in points])
    residual_p = np.log([point.loss for point in points]) - log_fitted_p
    freedom = len(points) - 1 - 2 * len(terms)
    residual_p = (residual_p - residual_p.mean()) * math.sqrt(len(points) / max(freedom, 1))
    start = np.array([math.log(law.E), *(value for name in terms for value in _start_of(law, name))])
    drawn = [
        _minimize(np.exp(log_fitted_p + noise.choice(residual_p, size=len(points))).tolist(), terms, start)
        for _ in range(n_samples)
    ]
    theta_sxk = np.array(drawn)
    columns = {"E": np.exp(theta_sxk[:, 0])}
    columns |= {{"A": "a", "B": "b"}[name]: theta_sxk[:, 2 + 2 * at] for at, name in enumerate(terms)}
    return {name: Interval(*map(float, np.percentile(values, (2.5, 97.5)))) for name, values in columns.items()}


def _terms(points: Sequence[Point]) -> dict[str, list[float]]:
    """The values of N and of D in each run, by the name of the coefficient."""
    return {"A": [point.parameters for point in points], "B": [point.tokens for point in points]}


def _start_of(law: Fit, name: str) -> tuple[float, float]:
    """Log of a coefficient, and its exponent."""
    coefficient, exponent = getattr(law, name), getattr(law, name.lower())
    return math.log(coefficient), exponent


def _minimize(
    losses: Sequence[float], terms: Mapping[str, Sequence[float]], start: np.ndarray | None = None
) -> np.ndarray:
    """Return log E, then log of the coefficient and the exponent of each term.

    Args:
        losses: of each run.
        terms: the values of N, of D or of both in each run.
        start: initial values; None tries a grid of them.
    """
    from scipy.optimize import minimize

    log_loss_p, logs_txp = np.log(losses), np.log(list(terms.values()))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        parts_kxp = np.vstack([np.full_like(log_loss_p, theta[0]), theta[1::2, None] - theta[2::2, None] * logs_txp])
        fitted_p = np.logaddexp.reduce(parts_kxp, axis=0)
        errors_p = fitted_p - log_loss_p
        is_small_p = np.abs(errors_p) <= DELTA
        huber_p = np.where(is_small_p, errors_p**2 / 2, DELTA * (np.abs(errors_p) - DELTA / 2))
        slopes_p = np.where(is_small_p, errors_p, DELTA * np.sign(errors_p))
        shares_kxp = np.exp(parts_kxp - fitted_p) * slopes_p
        gradient = np.empty_like(theta)
        gradient[0] = shares_kxp[0].sum()
        gradient[1::2] = shares_kxp[1:].sum(axis=1)
        gradient[2::2] = -(shares_kxp[1:] * logs_txp).sum(axis=1)
        # Scaled so that the tolerances of the optimizer suit small differences of logarithms.
        return float(huber_p.sum()) / DELTA**2, gradient / DELTA**2

    names = ["E", *("Aa" if "N" in terms else ""), *("Bb" if "D" in terms else "")]
    bounds = [(None, None), *[(None, MAX_LOG), (0.0, MAX_EXPONENT)] * len(terms)]

    def optimized(initial: np.ndarray, n_steps: int) -> Any:
        options = {"maxiter": n_steps, "maxfun": 2 * n_steps, "ftol": 1e-15, "gtol": 1e-9}
        return minimize(objective, initial, jac=True, method="L-BFGS-B", bounds=bounds, options=options)

    if start is not None:
        return optimized(start, 200).x
    found = [optimized(np.array(initial), 100) for initial in itertools.product(*(INITIAL[name] for name in names))]
    best = sorted(found, key=lambda one: one.fun)[:N_CONTINUED]
    return min((optimized(one.x, 5000) for one in best), key=lambda one: one.fun).x
