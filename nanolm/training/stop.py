"""SIGTERM and SIGINT ask a run to finish its step, save and end; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

from nanolm.training.ranks import Ranks


class StopRequest:
    """Listens while it is entered.

    Attributes:
        signal: the number of the signal that came, to this process or to one that trains with it, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    # The one that is entered, for whoever would ask from another thread.
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
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
            StopRequest.current = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if StopRequest.current is self:
            StopRequest.current = None

    def ask(self) -> None:
        """Asks as SIGTERM would, except that it never counts as the second signal."""
        self.signal = self.signal or signal.SIGTERM

    def is_asked(self, ranks: Ranks) -> bool:
        """Whether a signal has come to any of the ranks: all hear of it at the same step.

        A rank that hears of it before its own signal comes is not ended by that one: a launcher sends it to each.
        """
        heard_of = int(ranks.largest(self.signal or 0))
        self.signal = self.signal or heard_of or None
        return heard_of > 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._is_asked:
            os._exit(128 + number)
        self._is_asked = True
        self.signal = self.signal or number
