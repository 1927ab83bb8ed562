"""Resources of this machine: memory and CPU cores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# A batch has int64 inputs and targets.
TOKEN_BYTES = 2 * 8

CGROUP = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def host_memory() -> int | None:
    """Return the bytes that this process may use, limited by the machine or its cgroup; None if unknown."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in LIMITS:
        with contextlib.suppress(ValueError, OSError):
            found.append(int((CGROUP / name).read_text()))
    return min((limit for limit in found if limit > 0), default=None)


def batch_bytes(sequences: int, context_length: int) -> int:
    """Return the bytes of the tokens of a batch, inputs and targets."""
    return sequences * context_length * TOKEN_BYTES


def n_cores() -> int:
    """Return the number of CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
