"""How a token knows where it stands."""

from __future__ import annotations

import torch


def rotary_table(length: int, d_head: int, base: float = 10_000.0) -> torch.Tensor:
    """Angles of rotary position embedding (Su et al. 2021, section 3.4.2).

    Args:
        length: positions.
        d_head: width of a head, even.
        base: the slowest pair turns once in about 2 pi base positions.

    Returns:
        cos and sin stacked, 2xTx(d_head/2), fp32.
    """
    frequency = base ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x_BxHxTxD: torch.Tensor, table_2xTxP: torch.Tensor) -> torch.Tensor:
    """Turns the pair (i, i + D/2) of each position by its angle, so that q . k depends on distance alone."""
    cos, sin = table_2xTxP[:, : x_BxHxTxD.size(-2)].to(x_BxHxTxD.dtype)
    a, b = x_BxHxTxD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
