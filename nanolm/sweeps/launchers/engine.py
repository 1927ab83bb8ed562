"""What a launcher with processes of its own offers to the driver: start jobs, and tell which have ended.

An engine does not retry. A job whose process ended without a result is reported as a `LostJob`, and the driver starts
it again with the same number, so that it resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Request:
    """A job to start.

    Attributes:
        number: of the job. Of two jobs that wait, the one with the lower number is started first.
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

    def cancel_waiting(self) -> None:
        """Start none of the jobs that wait. `ended` reports them with `State.new`."""

    def stop_running(self) -> None:
        """Let the jobs that run save a checkpoint and end.

        Jobs that see the sweep's directory find its stop file, and need nothing else.
        """

    def close(self) -> None:
        """Stop the jobs that still run, which save a checkpoint first, and end all processes."""
