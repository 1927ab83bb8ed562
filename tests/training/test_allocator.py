import subprocess
import sys

import pytest

from nanolm.training.allocator import keep_freed_memory

# Page faults of twenty steps that make three tensors of 64 MiB each and free them.
CODE = """
import resource, sys, torch
from nanolm.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    ones = torch.ones(2**24)
    return (ones * 2) + 1
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="no glibc")
@pytest.mark.slow
def test_freed_memory_is_reused() -> None:
    faults = {
        what: int(subprocess.run([sys.executable, "-c", CODE, what], capture_output=True, text=True, check=True).stdout)
        for what in ("keep", "return")
    }
    assert faults["keep"] < faults["return"] / 3
