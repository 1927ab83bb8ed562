"""What Slurm says about jobs, by squeue and sacct, and scancel."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from collections.abc import Iterable, Sequence

# Seconds that a program of Slurm may take; a busy controller needs many.
TIMEOUT = 60.0

RUNNING = "RUNNING"
PENDING = "PENDING"
CANCELLED = "CANCELLED"

# States after which a job does not run again, unless Slurm puts it back into the queue.
FINAL = frozenset(
    {
        "BOOT_FAIL",
        CANCELLED,
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)

# Reasons for which a job waits in the queue until a person does something.
STUCK = {
    "PartitionTimeLimit": "its time limit is longer than its partition allows",
    "PartitionNodeLimit": "it asks for more machines than its partition allows",
    "PartitionConfig": "its partition does not allow what it asks for",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "BadConstraints": "no machine has the features that it asks for",
    "AccountNotAllowed": "its account may not use its partition",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its quality of service is not valid",
    "QOSNotAllowed": "its quality of service is not allowed",
    "QOSMaxWallDurationPerJobLimit": "its time limit is longer than its quality of service allows",
    "AssocMaxWallDurationPerJobLimit": "its time limit is longer than its account allows",
    "JobHeldUser": "it is held; scontrol release starts it",
    "JobHeldAdmin": "it is held by Slurm or its administrators",
    "launch failed requeued held": "it could not be started, and is held; scontrol release tries again",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A job as squeue lists it.

    Attributes:
        state: in capitals, as RUNNING.
        reason: why it waits or how it failed; None and nothing are the same.
    """

    state: str
    reason: str = ""

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL


def read_queue(jobs: Iterable[str]) -> dict[str, Entry] | None:
    """Return the jobs that Slurm knows, by their ids; it forgets a job some minutes after its end.

    Args:
        jobs: ids. All jobs of their arrays are returned.

    Returns:
        None if Slurm does not answer.
    """
    listed = ",".join(sorted({job.split("_")[0] for job in jobs}))
    options = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={listed}")
    done = _call(["squeue", *options])
    if done is None:
        return None
    if done.returncode:
        # Of a single job that it has forgotten.
        return {} if "Invalid job id" in done.stderr else None
    entries = [line.strip().split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    return {job: Entry(state.split()[0], reason) for job, state, reason in entries}


def describe_end(job: str, entry: Entry | None) -> str:
    """Describe how a job ended that left no result: its state, and the machine, as far as Slurm knows them."""
    done = _call(["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,NodeList"])
    lines = done.stdout.splitlines() if done is not None and not done.returncode else []
    state, _, nodes = lines[-1].partition("|") if lines else ("", "", "")
    state = state.strip() or (entry.state if entry else "it is no longer in the queue")
    return f"{state} on {nodes}" if nodes and nodes != "None assigned" else state


def cancel(jobs: Sequence[str], *options: str) -> None:
    """Cancel jobs; those that have ended are left out without a word."""
    if jobs:
        _call(["scancel", "--quiet", *options, *jobs])


def _call(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    return None
