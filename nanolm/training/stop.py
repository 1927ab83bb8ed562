"""Requests to end a run after its current step: by a signal, by another thread, by a pruner, or by leaving its loop."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from nanolm import signals

if TYPE_CHECKING:
    from nanolm.training.distributed.ranks import Ranks


# Called after each evaluation with the step and the validation loss; returns whether to end the run as pruned.
ShouldPrune = Callable[[int, float], bool]


# Smaller than any signal.
WITHOUT_SIGNAL = 0.5


class StopRequest:
    """A request to stop, checked by the training loop after every step. Inside its context it handles signals.

    Args:
        should_prune: the pruner, or None.
        on_repeated: called with the number of a repeated SIGTERM or SIGINT; None ends the process at once.

    Attributes:
        signal: number of the first signal that this process or another rank received, or None.
        is_active: whether signals are handled at this moment.
    """

    def __init__(
        self, should_prune: ShouldPrune | None = None, on_repeated: Callable[[int], None] | None = None
    ) -> None:
        self.should_prune = should_prune
        self.signal: int | None = None
        self.is_active = False
        self._on_repeated = on_repeated
        self._was_pruned = False
        self._was_left = False
        self._is_repeated = False
        self._previous: dict[int, Any] = {}

    @property
    def exit_status(self) -> int:
        """The exit status of a process that a signal ended, as shells report it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    @property
    def is_pruned(self) -> bool:
        """Whether a pruner ended the run, and no signal did."""
        return self._was_pruned and not self.signal

    def __enter__(self) -> Self:
        # Outside the main thread, where a launcher may run jobs, Python delivers no signals.
        self._previous = signals.install(self.receive)
        self.is_active = True
        return self

    def __exit__(self, *error: object) -> None:
        self.is_active = False
        signals.restore(self._previous)

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Record a signal; a second SIGTERM or SIGINT does not wait for the end of the step."""
        if number in signals.REPEATED:
            if self._is_repeated and self._on_repeated is None:
                os._exit(128 + number)
            if self._is_repeated and self._on_repeated is not None:
                signals.restore(self._previous)
                self._on_repeated(number)
            self._is_repeated = True
        self.signal = self.signal or number

    def request(self) -> None:
        """Request a stop from another thread, like SIGTERM, but never counted as a repeated signal."""
        self.signal = self.signal or signals.REPEATED[0]

    def leave(self) -> None:
        """Request a stop without a signal, because the loop was left."""
        self._was_left = True

    def check_pruning(self, step: int, loss: float, ranks: Ranks) -> None:
        """Ask the pruner, if there is one, about the validation loss of a step; rank 0 decides for all ranks."""
        should_prune = self.should_prune
        if should_prune is not None:
            self._was_pruned = ranks.run_on_main(lambda: should_prune(step, loss))

    def is_requested(self, ranks: Ranks, has_failed: bool = False) -> bool:
        """Return whether to stop after this step; the same on all ranks, whichever of them received a signal.

        A rank that learns of a signal from another rank is not ended by its own copy of it, which launchers send to
        every rank.

        Args:
            has_failed: whether this rank has to stop because it cannot write its rows.
        """
        received = ranks.max(self.signal or (WITHOUT_SIGNAL if has_failed or self._was_left else 0))
        self.signal = self.signal or int(received) or None
        return received > 0 or self._was_pruned
