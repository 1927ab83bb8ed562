"""Signals ask a run to finish its step, save and end; a repeated SIGTERM or SIGINT ends it at once."""

from __future__ import annotations

import os
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from nanolm import signals
from nanolm.training.distributed.ranks import Ranks


class StopRequest:
    """Handles signals while it is entered.

    Attributes:
        signal: the number of the signal that came, to this process or to one that trains with it, or None.
    """

    # The one that is entered, for other threads that ask.
    current: ClassVar[StopRequest | None] = None

    def __init__(self) -> None:
        self.signal: int | None = None
        self._is_asked = False
        self._before: dict[int, Any] = {}

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + (self.signal or 0)

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread alone; a launcher may run jobs in others.
        self._before = signals.install(self._receive)
        if threading.current_thread() is threading.main_thread():
            StopRequest.current = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signals.restore(self._before)
        if StopRequest.current is self:
            StopRequest.current = None

    def ask(self) -> None:
        """Ask as SIGTERM would, except that it never counts as the second signal."""
        self.signal = self.signal or signals.REPEATED[0]

    def is_asked(self, ranks: Ranks) -> bool:
        """Whether a signal has come to any of the ranks: all hear of it at the same step.

        A rank that hears of it before its own signal comes is not ended by that one: a launcher sends it to each.
        """
        heard_of = int(ranks.max(self.signal or 0))
        self.signal = self.signal or heard_of or None
        return heard_of > 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number in signals.REPEATED:
            if self._is_asked:
                os._exit(128 + number)
            self._is_asked = True
        self.signal = self.signal or number
