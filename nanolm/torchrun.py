"""How many processes torchrun started for this run, and which of them this is: its words are in the environment."""

from __future__ import annotations

import os

# All of them, or it was not torchrun: a container may have a WORLD_SIZE of its own.
_WORDS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Processes that train together; 1 without a launcher."""
    return _word("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process among them, from 0."""
    return _word("RANK", 0)


def local_rank() -> int:
    """Its number on this machine, which is that of its GPU."""
    return _word("LOCAL_RANK", 0)


def _word(name: str, alone: int) -> int:
    return int(os.environ[name]) if all(word in os.environ for word in _WORDS) else alone
