import torch

from nanolm.model.positions import rotary_table, rotate


def test_rotation_keeps_lengths_and_leaves_position_zero_alone() -> None:
    x = torch.randn(2, 3, 7, 8)
    turned = rotate(x, rotary_table(16, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[..., 0, :], x[..., 0, :])


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(8), torch.randn(8)
    table = rotary_table(32, 8)
    queries, keys = (rotate(x.expand(1, 1, 32, 8), table)[0, 0] for x in (q, k))
    scores = queries @ keys.T
    for distance in (0, 3, 11):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4, rtol=1e-4)
