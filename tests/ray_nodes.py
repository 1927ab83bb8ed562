"""Ray clusters of several nodes on this machine, as subprocesses that tests can kill."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

MEMORY = str(80 * 2**20)


class RayNodes:
    """A cluster: `ray start` on a head with one core, and on further nodes.

    Args:
        environment: of the nodes.

    Attributes:
        environment: of a driver, too: the cluster has a token of its own.
        address: of the cluster.
        temporary: where temporary files are.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        # Its sockets are in its folder, and their paths have a limit.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.temporary = self._folder / "t"
        self.temporary.mkdir()
        self._mark = secrets.token_hex(16)
        self._commands: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **environment,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "TMPDIR": str(self.temporary),
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        try:
            head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder / 'head'}")
            self.head = self._start(*head)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, hidden: Path | None = None) -> int:
        """Start a node, and return the process id of its raylet.

        Args:
            hidden: a folder that the node does not see.
        """
        # After the mount, the shell leaves the folder that it was started in.
        script = 'mount -t tmpfs none "$0" && cd / && exec "$@"'
        before = ("unshare", "-m", "sh", "-c", script, str(hidden)) if hidden else ()
        return self._start(f"--address={self.address}", before=before)

    def _start(self, *arguments: str, before: tuple[str, ...] = ()) -> int:
        known = set(self._raylets())
        ray = str(Path(sys.executable).with_name("ray"))
        command = (*before, ray, "start", *arguments, "--num-cpus=1", f"--object-store-memory={MEMORY}", "--block")
        output = (self._folder / f"{len(known)}.log").open("wb")
        process = subprocess.Popen(
            command,
            env={**self.environment, "RAY_NODES": self._mark},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        output.close()
        self._commands.append(process)
        deadline = time.monotonic() + 120
        while not (new := set(self._raylets()) - known):
            assert process.poll() is None, Path(output.name).read_text()
            assert time.monotonic() < deadline, "no raylet started"
            time.sleep(0.1)
        return new.pop()

    def _raylets(self) -> list[int]:
        return [process for process in marked_processes(self._mark) if name_of(process) == "raylet"]

    def close(self) -> None:
        """Kill all processes of the cluster."""
        while processes := marked_processes(self._mark):
            for process in processes:
                kill(process)
            time.sleep(0.1)
        for command in self._commands:
            command.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def workers_of(raylet: int) -> list[int]:
    """Return the processes of a node that run a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"run_job" in path.read_bytes() and parent_of(int(path.parent.name)) == raylet:
                found.append(int(path.parent.name))
    return found


def parent_of(process: int) -> int:
    """Return the parent of a process; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def marked_processes(mark: str) -> list[int]:
    """Return the other processes that have a text in their environment variables, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def name_of(process: int) -> str:
    """Return the name of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def kill(process: int) -> None:
    """Send SIGKILL to a process, if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
