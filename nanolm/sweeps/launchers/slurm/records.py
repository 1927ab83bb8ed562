"""The jobs that each command of a sweep has submitted: the next command finds those that are still in Slurm's queue.

A folder in the directory of the sweep belongs to each command, with submitit's files. Its records are JSON lines. A
lock shows whether its driver is alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from nanolm.files import open_regular, remove_tree
from nanolm.json_text import dump_json, parse_object
from nanolm.locks import Lock, is_held
from nanolm.sweeps.launchers.slurm.queue import Entry, read_queue
from nanolm.sweeps.stop_file import STOP, write_stop_file
from nanolm.untrusted import read_inside

RECORDS = "jobs.jsonl"
LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class Command:
    """An earlier command, or another one that shares the sweep.

    Attributes:
        jobs: the run of each job, by Slurm's id.
        stop_file: of its driver.
    """

    folder: Path
    jobs: Mapping[str, str]
    stop_file: Path | None

    def is_alive(self) -> bool:
        """Whether its driver is."""
        return is_held(self.folder / LOCK)

    def queue(self) -> dict[str, Entry] | None:
        """Return those of its jobs that are in Slurm's queue; None if Slurm does not answer."""
        queue = read_queue(self.jobs) if self.jobs else {}
        if queue is None:
            return None
        return {job: queue[job] for job in self.jobs if job in queue and not queue[job].is_final}

    def stop_running(self) -> None:
        """Let its jobs that run save a checkpoint and end."""
        if self.stop_file is not None:
            write_stop_file(self.stop_file, STOP)

    def remove(self) -> None:
        """Remove what it left, when its driver and its jobs have ended."""
        if self.stop_file is not None:
            self.stop_file.unlink(missing_ok=True)
        remove_tree(self.folder, ignore_errors=True)


def claim_folder(folder: Path) -> Lock:
    """Create the folder of this command and lock it.

    Raises:
        NanolmError: its file system has no locks.
        OSError: it cannot be created.
    """
    folder.mkdir(parents=True)
    lock = Lock(folder / LOCK, "hydra.sweep.dir=FOLDER")
    lock.acquire(0)
    return lock


def leave_folder(folder: Path, lock: Lock | None) -> None:
    """Remove the folder of this command, except for logs in it, and those of commands that have died.

    Args:
        lock: of the folder; None if there is none because nothing was submitted.
    """
    for command in other_commands(folder):
        if command.queue() == {} and not command.is_alive():
            command.remove()
    if lock is not None:
        names = [path.name for path in folder.glob("*")]
        logs = {name.split("_")[0] for name in names if name.endswith((".err", ".out"))}
        for script in folder.glob("*_submission.sh"):
            if script.name.split("_")[0] not in logs:
                script.unlink(missing_ok=True)
        (folder / RECORDS).unlink(missing_ok=True)
        lock.release()
        (folder / LOCK).unlink(missing_ok=True)
    for empty in (folder, folder.parent):
        with contextlib.suppress(OSError):
            empty.rmdir()


def write_records(folder: Path, jobs: Mapping[str, str], stop_file: Path | None) -> None:
    """Record jobs that were submitted.

    Args:
        jobs: the run of each job, by Slurm's id.
    """
    name = stop_file.name if stop_file else None
    lines = [dump_json({"job": job, "run": run, "stop_file": name}) + "\n" for job, run in jobs.items()]
    with open_regular(folder / RECORDS, "a") as file:
        file.write("".join(lines))


def other_commands(folder: Path) -> Iterator[Command]:
    """Read the records of the commands other than that of a folder; damaged lines are left out."""
    if folder.parent.is_symlink():
        return
    for path in sorted(folder.parent.glob(f"*/{RECORDS}")):
        if path.parent == folder or path.parent.is_symlink():
            continue
        jobs: dict[str, str] = {}
        stop_file = None
        with contextlib.suppress(OSError):
            for line in read_inside(path, folder.parent).decode(errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    row = parse_object(line)
                    if re.fullmatch(r"\d+(_\d+)?", row["job"]):
                        jobs[row["job"]] = str(row["run"])
                    if re.fullmatch(r"\.stop-[^/\0]+", row["stop_file"]):
                        stop_file = folder.parent.parent / row["stop_file"]
        yield Command(path.parent, jobs, stop_file)
