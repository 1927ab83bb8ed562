"""Positional encodings: sinusoidal, rotary and ALiBi."""

from __future__ import annotations

import math

import torch

# Of the sinusoidal encoding: the slowest pair of columns completes a cycle in about 2 pi BASE positions.
BASE = 10_000.0


def sinusoidal_table(length: int, d_model: int) -> torch.Tensor:
    """Build the sinusoidal encoding that is added to the embedding (Vaswani et al. 2017, section 3.5).

    Column 2i is sin(position / BASE^(2i / d_model)), column 2i + 1 the cosine of the same angle.

    Returns:
        TxC, fp32.
    """
    angles = _angles(length, d_model, BASE)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :d_model].float()


def rotary_table(length: int, d_key: int, base: float = BASE) -> torch.Tensor:
    """Build the angles of rotary position embedding (Su et al. 2021, section 3.4.2); d_key is even.

    Args:
        base: the slowest pair of dimensions completes a cycle in about 2 pi base positions.

    Returns:
        Cosines and sines, 2xTxR with R = d_key / 2, fp32.
    """
    angles = _angles(length, d_key, base)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x_BxHxTxD: torch.Tensor, table_2xTxR: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of dimensions (i, i + D/2) by its angle, so that q . k depends on relative positions only."""
    cos, sin = table_2xTxR.to(x_BxHxTxD.dtype)
    a, b = x_BxHxTxD.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def alibi_slopes(n_heads: int) -> torch.Tensor:
    """Compute the ALiBi slope of each head, by which its scores decrease per position (Press et al. 2022, section 3).

    For n heads, a power of two, they are 2^(-8/n), 2^(-16/n), ..., 2^-8. For other numbers they are those of the power
    of two below, followed by every second slope of the next power, as in the authors' code.

    Returns:
        H, fp32, positive.
    """
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * head / power) for head in range(1, power + 1)]
    slopes += [2 ** (-4 * head / power) for head in range(1, 2 * (n_heads - power), 2)]
    return torch.tensor(slopes)


def _angles(length: int, width: int, base: float) -> torch.Tensor:
    """Return position / base^(2i / width) for each position and each i < width / 2, in fp64."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
