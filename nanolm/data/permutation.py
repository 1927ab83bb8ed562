"""Random orders that are computed, never stored: any place of an order of any length at the same small cost."""

from __future__ import annotations

import numpy as np

ROUNDS = 8


def permute(places: np.ndarray, n: int, key: np.ndarray | int) -> np.ndarray:
    """Where a keyed random permutation of 0..n-1 sends each place.

    A Feistel network (Luby and Rackoff 1988) permutes the next power of four; what falls outside 0..n-1 goes through
    it again until it falls inside (cycle walking, Black and Rogaway 2002), four times on average at worst.

    Args:
        places: integers in 0..n-1, of any shape.
        n: length of the order, at least 1 and at most 2^62.
        key: picks the order; one for all places, or one for each. Mix what it is made of with `mix`.

    Returns:
        int64, shaped as `places`.
    """
    values = np.asarray(places, dtype=np.uint64).copy()
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), values.shape)
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    walking = np.ones(values.shape, dtype=bool)
    while walking.any():
        values[walking] = _feistel(values[walking], keys[walking], half)
        walking = values >= n
    return values.astype(np.int64)


def mix(*parts: np.ndarray | int) -> np.ndarray:
    """Well-mixed 64-bit keys, one-dimensional, from several numbers or arrays of them that broadcast together."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = _scramble(np.asarray(part, dtype=np.uint64) ^ (key + np.uint64(0x9E3779B97F4A7C15)))
    return key


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(ROUNDS):
        # The multiple of an odd number tells the rounds apart.
        scrambled = _scramble(right ^ (keys + np.uint64((number + 1) * 0xD1342543DE82EF95 % 2**64)))
        left, right = right, left ^ (scrambled & mask)
    return (left << half) | right


def _scramble(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input reaches every bit out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
