"""Resources of this machine: memory and CPU cores."""

from __future__ import annotations

import contextlib
import dataclasses
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


def available_memory() -> int | None:
    """Return the bytes that could be allocated now without swapping, limited by the cgroup; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(_kilobytes(Path("/proc/meminfo"))["MemAvailable"])
    with contextlib.suppress(OSError, ValueError, KeyError):
        used = int((CGROUP / "memory.current").read_text())
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        # Pages of files are dropped when memory is needed.
        free = int((CGROUP / "memory.max").read_text()) - used + int(counts["inactive_file"])
        found.append(max(0, free))
    return min(found, default=None)


@dataclasses.dataclass(frozen=True)
class ProcessMemory:
    """Resident memory of a process in bytes: now, and at most since `reset_peak`, or else since its start."""

    now: int
    peak: int


def process_memory(process: int) -> ProcessMemory | None:
    """Return the memory of a process; None if it has ended, or the system does not say."""
    try:
        status = _kilobytes(Path(f"/proc/{process}/status"))
        return ProcessMemory(status["VmRSS"], status["VmHWM"])
    except (OSError, ValueError, KeyError):
        return None


def reset_peak(process: int) -> None:
    """Reset the peak memory of a process, where the system can."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def _kilobytes(path: Path) -> dict[str, int]:
    """Return the lines `name: 123 kB` of a file in /proc, in bytes."""
    parts = [line.split() for line in path.read_text().splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in parts if words[2:] == ["kB"]}
