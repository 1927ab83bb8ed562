"""Random permutations that are computed element by element instead of being stored."""

from __future__ import annotations

import numpy as np

ROUNDS = 8


def permute(positions: np.ndarray, n: int, key: np.ndarray | int) -> np.ndarray:
    """Apply a keyed random permutation of 0..n-1 to each position.

    A Feistel network (Luby and Rackoff 1988) permutes the next power of four; a result outside 0..n-1 is permuted
    again until it is inside (cycle walking, Black and Rogaway 2002), at worst four times on average.

    Args:
        positions: integers in 0..n-1, of any shape.
        n: size of the permutation, at least 1 and at most 2^62.
        key: selects the permutation; one for all positions, or one for each. Derive it with `mix`.

    Returns:
        int64, with the shape of `positions`.
    """
    values = np.asarray(positions, dtype=np.uint64).copy()
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), values.shape)
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    walking = np.ones(values.shape, dtype=bool)
    while walking.any():
        values[walking] = _feistel(values[walking], keys[walking], half)
        walking = values >= n
    return values.astype(np.int64)


def mix(*parts: np.ndarray | int) -> np.ndarray:
    """Hash numbers, or arrays of numbers that broadcast together, to 64-bit keys, one-dimensional."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = _scramble(np.asarray(part, dtype=np.uint64) ^ (key + np.uint64(0x9E3779B97F4A7C15)))
    return key


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(ROUNDS):
        # A multiple of an odd constant gives each round another key.
        scrambled = _scramble(right ^ (keys + np.uint64((number + 1) * 0xD1342543DE82EF95 % 2**64)))
        left, right = right, left ^ (scrambled & mask)
    return (left << half) | right


def _scramble(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit affects every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
