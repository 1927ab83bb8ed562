"""A trace of some steps, by PyTorch's profiler."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nanolm.files import replacing

# Steps that are passed over (memory is found, kernels are chosen) and steps that are in the trace.
PASSED_OVER, TRACED = 10, 5

# Operations that are named.
SHOWN = 10


@contextlib.contextmanager
def traced(path: Path, steps: int, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Traces TRACED of the steps to come and writes them as JSON, for https://ui.perfetto.dev or chrome://tracing.

    Args:
        path: the file.
        steps: how many are to come; of few, the last are traced.
        say: told what took longest, and where the trace is.

    Yields:
        What is to be called behind each step.
    """
    import torch.profiler

    active = min(TRACED, steps)
    wait = max(0, min(PASSED_OVER, steps - active - 1))
    warmup = min(1, steps - active - wait)

    def write(profiler: torch.profiler.profile) -> None:
        with replacing(path) as temporary:
            profiler.export_chrome_trace(str(temporary))
        say("\n".join([f"what {active} steps spent their time in:", *_longest(profiler.key_averages())]))
        say(f"the trace is {path}: open it at https://ui.perfetto.dev")

    with warnings.catch_warnings():
        # Of a run too short for a warmup, it says that there is none.
        warnings.simplefilter("ignore")
        schedule = torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step


def _longest(events: Any) -> list[str]:
    """The operations that took longest by themselves, a line each."""
    on_gpu = any(event.self_device_time_total for event in events)
    took = {
        event: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in events
        if not event.key.startswith("ProfilerStep")
    }
    total = sum(took.values()) or 1.0
    longest = sorted(took, key=took.__getitem__, reverse=True)[:SHOWN]
    return [
        f"  {took[event] / total:6.1%} {took[event] / 1000:10.1f} ms {event.count:7,} calls  {event.key[:60]}"
        for event in longest
    ]
