import itertools

import pytest
import torch

from nanolm.config.optimizer import NewtonSchulz
from nanolm.training.optimizers.newton_schulz import coefficients, orthogonalize

METHODS = [(NewtonSchulz.quintic, 5), (NewtonSchulz.polar_express, 3), (NewtonSchulz.polar_express, 6)]


@pytest.mark.parametrize(("method", "steps"), METHODS)
@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (24, 30)])
def test_orthogonalize_brings_singular_values_near_one(
    method: NewtonSchulz, steps: int, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    matrices = torch.linalg.qr(torch.randn(5, *shape))[0] if shape == (24, 30) else torch.randn(5, *shape)
    matrices = matrices * torch.logspace(-8, 3, 5)[:, None, None]
    found = orthogonalize(matrices, method, steps)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65
    assert values.max() < 1.26
    alone = torch.cat([orthogonalize(matrix[None], method, steps) for matrix in matrices])
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(orthogonalize(matrices, method, steps, 3.0), 3 * found, rtol=1e-4, atol=1e-5)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.cosine_similarity(found.flatten(1), (left @ right).flatten(1)).min() > 0.97


@pytest.mark.parametrize(("method", "steps"), METHODS)
def test_orthogonalize_keeps_zeros(method: NewtonSchulz, steps: int) -> None:
    matrices = torch.stack([torch.zeros(3, 5), torch.full((3, 5), 1e-4)])
    found = orthogonalize(matrices, method, steps)
    assert found[0].eq(0).all()
    assert found[1].norm().sub(1).abs() < 0.35


def test_polar_express_alternates_at_maximum_error() -> None:
    """The best polynomial of three coefficients has its largest error at four points, alternately below and above 1."""
    x = torch.logspace(-5, 0, 20001, dtype=torch.float64)
    ((a, b, c),) = coefficients(NewtonSchulz.polar_express, 1)
    error = a * x + b * x**3 + c * x**5 - 1
    x, error = x[error >= -0.2501], error[error >= -0.2501]
    turns = error[1:-1][(error[1:-1] - error[:-2]).sign() != (error[2:] - error[1:-1]).sign()]
    found = torch.cat([error[:1], turns, error[-1:]])
    torch.testing.assert_close(found, torch.tensor([-0.25, 0.25, -0.25, 0.25]).double(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", range(1, 8))
def test_polar_express_widens_its_interval_with_each_iteration(steps: int) -> None:
    x = torch.logspace(-6, 0, 2001, dtype=torch.float64)
    bounds = []
    for count in (steps, steps + 1):
        y = x
        for a, b, c in coefficients(NewtonSchulz.polar_express, count):
            y = a * y + b * y**3 + c * y**5
        assert y.max() <= 1.2501
        bounds.append(x[y >= 0.7499].min())
        assert (y[x >= bounds[-1]] >= 0.7499).all()
    assert bounds[1] < bounds[0] / 2


def test_coefficients_of_quintic_are_constant() -> None:
    assert all(a == b for a, b in itertools.pairwise(coefficients(NewtonSchulz.quintic, 4)))
