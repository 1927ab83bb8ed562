"""The training speed and the remaining time of a run."""

from __future__ import annotations

import collections
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

# Weight of the latest step in the moving average of the time per step, or per token of its batch.
SMOOTHING = 0.05


def times_due(step: int, max_steps: int, every: int) -> int:
    """Count the steps after this one that are the last or a multiple of `every`."""
    return max_steps // every - step // every + (max_steps % every > 0)


class Pace:
    """Measures the time of training steps, without the evaluations and saves between them.

    Args:
        tokens, seconds: totals of earlier sessions.
        clock: monotonic seconds.

    Attributes:
        tokens: trained on in the steps that count towards the speed.
        seconds: duration of those steps.
    """

    def __init__(self, tokens: int = 0, seconds: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self.tokens, self.seconds = tokens, seconds
        self._clock = clock
        self._reported_tokens, self._reported_seconds = tokens, seconds
        self._seconds_per_size: float | None = None
        self._since = clock()
        self._pauses: dict[str, list[float]] = collections.defaultdict(list)

    def step(self, tokens: int, counts: bool = True, size: int = 1) -> None:
        """Record the end of a step.

        Args:
            tokens: trained on in the step.
            counts: False for a step that is slower than later ones, such as the first of a compiled model.
            size: of the step relative to others, such as the tokens of its batch, padding included.
        """
        now = self._clock()
        duration, self._since = now - self._since, now
        if not counts:
            return
        self.tokens += tokens
        self.seconds += duration
        latest = duration / size
        average = latest if self._seconds_per_size is None else self._seconds_per_size
        self._seconds_per_size = average + SMOOTHING * (latest - average)

    def restart(self) -> None:
        """Measure from now on: the time since the last step belongs to whoever looked at it."""
        self._since = self._clock()

    @contextlib.contextmanager
    def paused(self, reason: str) -> Iterator[None]:
        """Exclude the time inside the context from the speed.

        Args:
            reason: pauses are averaged by reason to estimate the remaining time.
        """
        began = self._clock()
        try:
            yield
        finally:
            duration = self._clock() - began
            self._since += duration
            self._pauses[reason].append(duration)

    def tokens_per_second(self) -> float | None:
        """Return the speed since the previous call; None if no step has counted since."""
        tokens, seconds = self.tokens - self._reported_tokens, self.seconds - self._reported_seconds
        self._reported_tokens, self._reported_seconds = self.tokens, self.seconds
        return tokens / seconds if seconds else None

    def seconds_left(self, size: int, pauses: dict[str, int]) -> float | None:
        """Estimate the remaining time.

        Args:
            size: sum over the steps left in the run.
            pauses: number of pauses left by reason; reasons without a pause so far are ignored.

        Returns:
            Seconds; None before the first step that counts.
        """
        if self._seconds_per_size is None:
            return None
        left = size * self._seconds_per_size
        for reason, count in pauses.items():
            if seen := self._pauses[reason]:
                left += count * statistics.fmean(seen)
        return left
