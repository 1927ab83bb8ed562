"""Whether another job fits into memory."""

import mmap
import os

import pytest

from nanolm.machine import ProcessMemory, available_memory, host_memory, process_memory, reset_peak
from nanolm.sweeps.launchers.local.memory import CUDA_CONTEXT, fits_gpu, fits_host


def process(now: int) -> ProcessMemory:
    return ProcessMemory(now, now)


@pytest.mark.parametrize(
    ("peak", "available", "candidate", "running", "expected"),
    [
        (100, 10, None, [], True),
        (100, None, None, [process(10)], True),
        (0, 10, None, [process(10)], True),
        (100, 100, None, [process(100)], True),
        (100, 99, None, [process(100)], False),
        (100, 70, process(30), [process(100)], True),
        (100, 159, None, [process(40)], False),
        (100, 160, None, [process(40)], True),
        (100, 100, None, [process(400)], True),
    ],
)
def test_a_job_fits_beside_those_that_may_grow(
    peak: int, available: int | None, candidate: ProcessMemory | None, running: list[ProcessMemory], expected: bool
) -> None:
    assert fits_host(peak, available, candidate, running) == expected


def test_a_job_fits_on_a_gpu_beside_as_large_ones() -> None:
    peak = CUDA_CONTEXT
    assert fits_gpu(peak, 4 * CUDA_CONTEXT, n_running=1)
    assert not fits_gpu(peak, 4 * CUDA_CONTEXT, n_running=2)
    assert fits_gpu(peak, 0, n_running=0)
    assert fits_gpu(0, 0, n_running=5)


def test_memory_of_this_process_and_machine() -> None:
    available, total = available_memory(), host_memory()
    if available is None:
        pytest.skip("the system does not say")
    assert total is not None
    assert 0 < available <= total
    # Not a bytearray: the allocator may have as much to reuse.
    with mmap.mmap(-1, 64 * 2**20) as block:
        block[:: 2**12] = b"x" * len(block[:: 2**12])
        before = process_memory(os.getpid())
    reset_peak(os.getpid())
    after = process_memory(os.getpid())
    assert before is not None
    assert after is not None
    assert after.peak < before.peak
    assert process_memory(2**22 + 1) is None
