"""A trace of a few training steps by PyTorch's profiler."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nanolm.files import replacing

# Steps before the trace, in which memory is allocated and kernels are chosen, and steps in the trace.
SKIPPED, TRACED = 10, 5

# Number of operations in the summary.
SHOWN = 10


@contextlib.contextmanager
def traced(path: Path, steps: int, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Trace TRACED steps and write them as JSON, for https://ui.perfetto.dev or chrome://tracing.

    Args:
        path: the file to write.
        steps: steps left in the run; if there are few, the last ones are traced.
        say: called with the slowest operations and the path.

    Yields:
        A function to call after each step.
    """
    import torch.profiler

    active = min(TRACED, steps)
    wait = max(0, min(SKIPPED, steps - active - 1))
    warmup = min(1, steps - active - wait)

    def write(profiler: torch.profiler.profile) -> None:
        try:
            with replacing(path) as temporary:
                profiler.export_chrome_trace(str(temporary))
        except OSError as error:
            say(f"nanolm: the trace {path} cannot be written: {error.strerror or error}")
            return
        operations = _slowest_operations(profiler.key_averages())
        say("\n".join([f"operations that took most of the time of {active} steps:", *operations]))
        say(f"the trace is {path}: open it at https://ui.perfetto.dev")

    with warnings.catch_warnings():
        # It warns if the run is too short for a warmup.
        warnings.simplefilter("ignore")
        schedule = torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step


def _slowest_operations(events: Any) -> list[str]:
    """Describe the operations with the longest own time, one line each."""
    on_gpu = any(event.self_device_time_total for event in events)
    times = {
        event: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in events
        if not event.key.startswith("ProfilerStep")
    }
    total = sum(times.values()) or 1.0
    slowest = sorted(times, key=times.__getitem__, reverse=True)[:SHOWN]
    return [
        f"  {times[event] / total:6.1%} {times[event] / 1000:10.1f} ms {event.count:7,} calls  {event.key[:60]}"
        for event in slowest
    ]
