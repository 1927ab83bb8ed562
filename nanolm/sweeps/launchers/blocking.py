"""Hydra's own launcher and those of other packages, which return only when all their jobs have ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanolm.errors import NanolmError, is_disk_failure, write_failure
from nanolm.signals import Stopped
from nanolm.sweeps.handover import LostJob
from nanolm.sweeps.launchers.engine import Ended, Request
from nanolm.sweeps.states import Report, State


class BlockingJobs:
    """Runs jobs through a launcher of Hydra; `start` returns when they have ended.

    Args:
        launcher: has been set up.
        where: the directory of the sweep, for messages.
    """

    # It takes any number of jobs at a time, but tells nothing before the last of them has ended.
    n_slots = 1

    def __init__(self, launcher: Any, where: str) -> None:
        self._launcher = launcher
        self._where = where
        self._ended: list[Ended] = []

    def start(self, requests: Sequence[Request]) -> None:
        """Run jobs.

        Raises:
            NanolmError: from the launcher; or it cannot write to the disk.
        """
        results: list[Any]
        try:
            returned = self._launcher.launch([each.overrides for each in requests], initial_job_idx=requests[0].number)
            # Of a process that failed, the value is an exception.
            results = [job_return._return_value for job_return in returned]
        except NanolmError:
            raise
        except Stopped:
            # A signal to this process, which the driver has noted.
            results = [Report(State.interrupted)] * len(requests)
        except Exception as error:
            # Of the launcher: a job returns its own errors. The results of all jobs are lost.
            if isinstance(error, OSError) and is_disk_failure(error):
                raise write_failure(error, "the sweep", self._where, "repeat the command") from error
            reason = str(error).strip() or "no reason given"
            results = [LostJob(f"{type(error).__name__}: {reason}".splitlines()[0])] * len(requests)
        for each, result in zip(requests, results, strict=True):
            self._ended.append(Ended(each.number, result if isinstance(result, Report | LostJob) else LostJob()))

    def ended(self, timeout: float) -> list[Ended]:
        """Return the jobs that have ended since the last call."""
        found, self._ended = self._ended, []
        return found

    def cancel_waiting(self) -> None:
        """No job waits or runs between two calls."""

    def stop_running(self) -> None:
        """No job waits or runs between two calls."""

    def close(self) -> None:
        """No job waits or runs between two calls."""
