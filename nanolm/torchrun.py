"""Rank and world size of this process, as set by torchrun in the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# torchrun sets all of them; a container may have set WORLD_SIZE alone.
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# As in `planned_world_size`.
_planned = 1


def world_size() -> int:
    """Return the number of processes of the run; 1 without torchrun."""
    return max(_planned, _variable("WORLD_SIZE", 1))


@contextlib.contextmanager
def planned_world_size(number: int) -> Iterator[None]:
    """Let settings be checked for runs that other processes will train, this number of them together."""
    global _planned
    before, _planned = _planned, number
    try:
        yield
    finally:
        _planned = before


def rank() -> int:
    """Return the number of this process, from 0."""
    return _variable("RANK", 0)


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return _variable("LOCAL_RANK", 0)


def _variable(name: str, default: int) -> int:
    return int(os.environ[name]) if all(variable in os.environ for variable in _VARIABLES) else default
