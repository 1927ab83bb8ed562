"""The part of a text that a model reads."""

from __future__ import annotations


def window_start(length: int, context_length: int, stride: int) -> int:
    """Return the first token of a text that the model reads: a multiple of stride, so that it changes rarely."""
    return -(-max(0, length - context_length) // stride) * stride
