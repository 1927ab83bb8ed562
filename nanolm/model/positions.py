"""How a token knows where it stands."""

from __future__ import annotations

import math

import torch


def sinusoidal_table(length: int, d_model: int, base: float = 10_000.0) -> torch.Tensor:
    """Sines in the even columns and cosines in the odd ones (Vaswani et al. 2017, section 3.5).

    Column 2i is sin(position / base^(2i / d_model)), column 2i + 1 the cosine of the same angle.

    Returns:
        TxC, fp32, to be added to the embedding.
    """
    frequency = base ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model].float()


def rotary_table(length: int, d_key: int, base: float = 10_000.0) -> torch.Tensor:
    """Angles of rotary position embedding (Su et al. 2021, section 3.4.2).

    Args:
        length: positions.
        d_key: width of a head's queries and keys, even.
        base: the slowest pair turns once in about 2 pi base positions.

    Returns:
        cos and sin stacked, 2xTx(d_key/2), fp32.
    """
    frequency = base ** (-torch.arange(0, d_key, 2, dtype=torch.float64) / d_key)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x_BxHxTxD: torch.Tensor, table_2xTxP: torch.Tensor) -> torch.Tensor:
    """Turns the pair (i, i + D/2) of each position by its angle, so that q . k depends on distance alone."""
    cos, sin = table_2xTxP.to(x_BxHxTxD.dtype)
    a, b = x_BxHxTxD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def alibi_slopes(n_heads: int) -> torch.Tensor:
    """How fast the scores of each head fall with the distance (Press et al. 2022, section 3).

    For a power of two the slopes are 2^(-8/n), 2^(-16/n), ..., 2^-8; for any other number those of the power of two
    below it, and then every second one of those of the next power, as the authors' code has it.

    Returns:
        H, fp32, positive.
    """
    below = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * head / below) for head in range(1, below + 1)]
    slopes += [2 ** (-4 * head / below) for head in range(1, 2 * (n_heads - below), 2)]
    return torch.tensor(slopes)
