"""How fast a run trains, and how long it will take."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

# How much of a step's time is in the mean that the time left is worked out from.
SMOOTHING = 0.05


@dataclasses.dataclass
class Interruptions:
    """What the loop stops for: how often, and for how many seconds in all."""

    count: int = 0
    seconds: float = 0.0


def times_due(step: int, max_steps: int, every: int) -> int:
    """How many of the steps behind this one are a multiple of `every`, or the last."""
    return max_steps // every - step // every + (max_steps % every > 0)


class Pace:
    """The clock of a loop: training apart from all that it stops for.

    Args:
        tokens, seconds: of earlier sessions.

    Attributes:
        tokens: trained on in the steps that count.
        seconds: that those steps took.
    """

    def __init__(self, tokens: int = 0, seconds: float = 0.0) -> None:
        self.tokens, self.seconds = tokens, seconds
        self._shown_tokens, self._shown_seconds = tokens, seconds
        self._step_seconds: float | None = None
        self._since = time.perf_counter()
        self._interruptions: dict[str, Interruptions] = {}

    def step(self, tokens: int, counts: bool = True) -> None:
        """A step is done.

        Args:
            tokens: that it trained on.
            counts: whether it is like those that follow; the first of a compiled model is not.
        """
        now = time.perf_counter()
        took, self._since = now - self._since, now
        if not counts:
            return
        self.tokens += tokens
        self.seconds += took
        before = took if self._step_seconds is None else self._step_seconds
        self._step_seconds = before + SMOOTHING * (took - before)

    @contextlib.contextmanager
    def paused(self, reason: str) -> Iterator[None]:
        """What happens inside is no training; reasons are told apart for the time left."""
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._since += took
            found = self._interruptions.setdefault(reason, Interruptions())
            found.count += 1
            found.seconds += took

    def tokens_per_second(self) -> float | None:
        """Since it was last asked; None where no step has counted since."""
        tokens, seconds = self.tokens - self._shown_tokens, self.seconds - self._shown_seconds
        self._shown_tokens, self._shown_seconds = self.tokens, self.seconds
        return tokens / seconds if seconds else None

    def seconds_left(self, steps: int, interruptions: dict[str, int]) -> float | None:
        """An estimate.

        Args:
            steps: that are to come.
            interruptions: how many of each reason are to come; one that was never seen counts for nothing.

        Returns:
            Seconds; None before the first step that counts.
        """
        if self._step_seconds is None:
            return None
        left = steps * self._step_seconds
        for reason, count in interruptions.items():
            if seen := self._interruptions.get(reason):
                left += count * seen.seconds / seen.count
        return left
