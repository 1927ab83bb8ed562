"""What a launcher with processes of its own offers to the driver: start jobs, and tell which have ended.

An engine does not retry. A job whose process ended without a result is reported as a `LostJob`, and the driver starts
it again, so that it resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Request:
    """A job to start.

    Attributes:
        number: identifies it among the jobs that an engine is given.
        overrides: the job, as `nanolm.sweeps.handover.PlannedJob.parse` reads it.
    """

    number: int
    overrides: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Ended:
    """A job that has ended.

    Attributes:
        number: of its request.
        result: the `Report` that its function returned, or a `LostJob`.
    """

    number: int
    result: Any


class Engine(Protocol):
    """Runs jobs at the same time."""

    @property
    def n_slots(self) -> int:
        """How many jobs run at a time at most; more may be started, and wait."""

    def start(self, requests: Sequence[Request]) -> None:
        """Start jobs, or queue them, and return at once.

        Raises:
            SweepError: no job can be started.
        """

    def ended(self, timeout: float) -> list[Ended]:
        """Wait until at least one job has ended, at most for a number of seconds; return all that have ended since.

        Raises:
            SweepError: no job can run any more.
        """

    def close(self) -> None:
        """Stop the jobs that still run, which save a checkpoint first, and end all processes."""
