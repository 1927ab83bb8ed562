import math

import pytest
import torch

from nanolm.model.positions import alibi_slopes, rotary_table, rotate, sinusoidal_table


def test_rotation_keeps_norms_and_position_zero() -> None:
    x = torch.randn(2, 3, 7, 8)
    rotated = rotate(x, rotary_table(7, 8))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotated[..., 0, :], x[..., 0, :])


def test_rotary_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(8), torch.randn(8)
    table = rotary_table(32, 8)
    queries, keys = (rotate(x.expand(1, 1, 32, 8), table)[0, 0] for x in (q, k))
    scores = queries @ keys.T
    for distance in (0, 3, 11):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("d_model", [6, 7])
def test_sinusoids_match_the_paper(d_model: int) -> None:
    table = sinusoidal_table(40, d_model)
    assert table.shape == (40, d_model)
    for position in (0, 1, 17, 39):
        for column in range(d_model):
            angle = position / 10_000 ** (2 * (column // 2) / d_model)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[position, column].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("n_heads", "expected"),
    [
        (1, [2**-8]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (8, [2**-n for n in range(1, 9)]),
        # The slopes of 4 heads, then every second slope of 8 heads.
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [2**-n for n in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_alibi_slopes_match_the_paper(n_heads: int, expected: list[float]) -> None:
    assert alibi_slopes(n_heads).tolist() == pytest.approx(expected)
