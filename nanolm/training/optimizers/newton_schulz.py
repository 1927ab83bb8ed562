"""Newton-Schulz iterations, which orthogonalize matrices with matrix products only."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from nanolm.config.optimizer import NewtonSchulz

# One iteration maps each singular value s to a s + b s^3 + c s^5.
Quintic = tuple[float, float, float]

# Maps singular values in (0, 1] to between 0.7 and 1.2 after a few iterations (Jordan et al. 2024).
JORDAN: Quintic = (3.4445, -4.7750, 2.0315)

# The largest error of singular values above the lower bound that Polar Express is fitted to.
POLAR_EXPRESS_ERROR = 0.25

# The norm of a matrix in bf16 is not exact, and a singular value above 1 would grow.
SAFETY = 1.01

# Against division by zero, for matrices of zeros.
TINY = 1e-30


@functools.cache
def coefficients(method: NewtonSchulz, steps: int) -> tuple[Quintic, ...]:
    """Return the coefficients of each iteration."""
    if method is NewtonSchulz.quintic:
        return (JORDAN,) * steps
    return polar_express(steps)


def polar_express(steps: int) -> tuple[Quintic, ...]:
    """Return the coefficients of Polar Express (Amsel et al. 2025, section 3).

    Each polynomial is the best approximation of 1 on the interval that the ones before map the singular values to. The
    first interval is as wide as the number of iterations allows: singular values from its lower bound to 1 end within
    POLAR_EXPRESS_ERROR of 1.
    """
    # The final error falls as the lower bound rises: bisection of its logarithm.
    low, high = -30.0, 0.0
    for _ in range(50):
        middle = (low + high) / 2
        if _fitted(math.exp(middle), steps)[1] > POLAR_EXPRESS_ERROR:
            low = middle
        else:
            high = middle
    return _fitted(math.exp(high), steps)[0]


def _fitted(lower: float, steps: int) -> tuple[tuple[Quintic, ...], float]:
    """Return the polynomials for singular values in [lower, 1], and the error of their composition."""
    upper, error, found = 1.0, 0.0, []
    for _ in range(steps):
        quintic, error = _best_quintic(lower, upper)
        found.append(quintic)
        lower, upper = 1 - error, 1 + error
    return tuple(found), error


def _best_quintic(lower: float, upper: float) -> tuple[Quintic, float]:
    """Return the odd quintic with the smallest maximum distance from 1 on an interval, and that distance.

    Its error reaches the maximum with alternating signs at both ends and at two points between, its extrema, which
    Remez's algorithm finds.
    """
    if lower > (1 - 1e-5) * upper:
        # The limit of equal ends: the quintic of Newton and Schulz, with the error in its leading term.
        return (15 / 8 / upper, -10 / 8 / upper**3, 3 / 8 / upper**5), (1 - lower / upper) ** 3
    points = np.array([lower, (3 * lower + upper) / 4, (lower + 3 * upper) / 4, upper])
    for _ in range(100):
        matrix = np.stack([points, points**3, points**5, np.array([1.0, -1.0, 1.0, -1.0])], axis=1)
        a, b, c, error = np.linalg.solve(matrix, np.ones(4))
        root = math.sqrt(9 * b * b - 20 * a * c)
        extrema = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))
        if np.allclose(extrema, points[1:3], rtol=1e-12, atol=0):
            break
        points[1:3] = extrema
    return (float(a), float(b), float(c)), abs(float(error))


def orthogonalize(matrices_nxrxc: torch.Tensor, method: NewtonSchulz, steps: int, scale: float = 1.0) -> torch.Tensor:
    """Approximate U V^T for each matrix with the SVD U S V^T.

    Args:
        matrices_nxrxc: a batch of n matrices of r rows and c columns.
        method: the polynomials of the iteration.
        steps: number of iterations.
        scale: a factor on the result.

    Returns:
        The same shape and dtype. Singular values are near `scale`, except for those that were close to zero.
    """
    # The iterations tolerate rounding errors, and GPUs are fastest in bf16; CPUs are not.
    x_nxrxc = matrices_nxrxc.bfloat16() if matrices_nxrxc.is_cuda else matrices_nxrxc
    iterate = _quintic if method is NewtonSchulz.quintic else _polar_express
    return iterate(x_nxrxc, coefficients(method, steps), scale).to(matrices_nxrxc.dtype)


def _quintic(x_nxrxc: torch.Tensor, quintics: Sequence[Quintic], scale: float) -> torch.Tensor:
    """Iterate from singular values that the Frobenius norm bounds by 1."""
    x_nxrxc = x_nxrxc / (x_nxrxc.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for a, b, c in quintics:
        gram_nxsxs = _gram(x_nxrxc)
        polynomial_nxsxs = torch.baddbmm(gram_nxsxs, gram_nxsxs, gram_nxsxs, beta=b, alpha=c)
        x_nxrxc = torch.baddbmm(x_nxrxc, *_order(polynomial_nxsxs, x_nxrxc), beta=a)
    return x_nxrxc * scale


def _polar_express(x_nxrxc: torch.Tensor, quintics: Sequence[Quintic], scale: float) -> torch.Tensor:
    """Iterate from singular values that the norm of (X X^T)^2 bounds by 1.

    The first polynomial needs that matrix anyway, and its norm is a closer bound than that of X, so that fewer
    iterations are enough. The normalization and the scale are factors on s x s matrices, not on X, where s is the
    shorter side.

    All polynomials are in X X^T, and commute. In fp32, matrices with one side at least twice the other are multiplied
    by the product of the polynomials once, at the end: iterating on X X^T needs s x s products only.
    """
    gram_nxsxs = _gram(x_nxrxc)
    # Without the division by the trace, the square of small gradients would underflow.
    trace_nx1x1 = gram_nxsxs.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float32)[:, None, None].clamp(min=TINY)
    gram_nxsxs = gram_nxsxs / trace_nx1x1.to(gram_nxsxs.dtype)
    square_nxsxs = torch.bmm(gram_nxsxs, gram_nxsxs)
    bound_nx1x1 = torch.linalg.vector_norm(square_nxsxs, dim=(1, 2), keepdim=True, dtype=torch.float32).sqrt()
    # At least 1 / s, except for a matrix of zeros.
    bound_nx1x1 = SAFETY * bound_nx1x1.clamp(min=1e-6)
    gram_nxsxs = gram_nxsxs / bound_nx1x1.to(gram_nxsxs.dtype)
    square_nxsxs = square_nxsxs / bound_nx1x1.square().to(gram_nxsxs.dtype)
    is_long = 2 * min(x_nxrxc.shape[1:]) <= max(x_nxrxc.shape[1:]) and x_nxrxc.dtype == torch.float32
    (a, b, c), *rest = quintics
    polynomial_nxsxs = _plus_identity(b * gram_nxsxs + c * square_nxsxs, a)
    product_nxsxs = polynomial_nxsxs * (trace_nx1x1.rsqrt() * bound_nx1x1.rsqrt()).to(gram_nxsxs.dtype)
    for a, b, c in rest:
        if is_long:
            gram_nxsxs = torch.bmm(torch.bmm(polynomial_nxsxs, gram_nxsxs), polynomial_nxsxs)
        else:
            x_nxrxc = torch.bmm(*_order(product_nxsxs, x_nxrxc))
            gram_nxsxs = _gram(x_nxrxc)
        polynomial_nxsxs = _plus_identity(torch.baddbmm(gram_nxsxs, gram_nxsxs, gram_nxsxs, beta=b, alpha=c), a)
        product_nxsxs = torch.bmm(polynomial_nxsxs, product_nxsxs) if is_long else polynomial_nxsxs
    return torch.bmm(*_order(scale * product_nxsxs, x_nxrxc))


def _is_tall(x_nxrxc: torch.Tensor) -> bool:
    return x_nxrxc.size(1) > x_nxrxc.size(2)


def _gram(x_nxrxc: torch.Tensor) -> torch.Tensor:
    """Return the smaller of X X^T and X^T X, n x s x s."""
    return torch.bmm(x_nxrxc.mT, x_nxrxc) if _is_tall(x_nxrxc) else torch.bmm(x_nxrxc, x_nxrxc.mT)


def _order(square_nxsxs: torch.Tensor, x_nxrxc: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of the product of a polynomial in the Gram matrix and X, on the side that it is for."""
    return (x_nxrxc, square_nxsxs) if _is_tall(x_nxrxc) else (square_nxsxs, x_nxrxc)


def _plus_identity(matrices_nxsxs: torch.Tensor, factor: float) -> torch.Tensor:
    """Add a multiple of the identity in place."""
    matrices_nxsxs.diagonal(dim1=1, dim2=2).add_(factor)
    return matrices_nxsxs
