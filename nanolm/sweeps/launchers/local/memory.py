"""Whether another job fits into the memory that is left, as far as the peak of the last job tells."""

from __future__ import annotations

from collections.abc import Sequence

from nanolm.machine import ProcessMemory

# Bytes of a GPU that a process takes for its CUDA context and kernels, in addition to the memory of PyTorch.
CUDA_CONTEXT = 600 * 2**20


def fits_host(
    peak: int, available: int | None, candidate: ProcessMemory | None, running: Sequence[ProcessMemory]
) -> bool:
    """Return whether a job fits into the memory of the machine, if it and those that run grow to the last job's peak.

    Args:
        peak: of the process of the last job, in bytes; 0 if none has ended.
        available: bytes that can be allocated now; None if unknown.
        candidate: the process that would run the job, which keeps what it has; None: a new one.
        running: the processes that run jobs.
    """
    if available is None or not running:
        return True
    growth = sum(max(0, peak - memory.now) for memory in running)
    return growth + max(0, peak - (candidate.now if candidate else 0)) <= available


def fits_gpu(peak: int, free: int, n_running: int) -> bool:
    """Return whether a job fits on a GPU beside those that run on it, if each takes as much as the last job.

    Args:
        peak: bytes that PyTorch reserved for the last job; 0 if it is unknown.
        free: bytes of the GPU that were free before the sweep.
    """
    return not n_running or not peak or (n_running + 1) * (peak + CUDA_CONTEXT) <= free
