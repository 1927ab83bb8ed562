"""The processes that hold locks, and whether they have ended."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import re
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from nanolm.json_text import dump_json, parse_object

# Characters of the command in a lock file.
MAX_COMMAND = 500

_HOLDER = re.compile(r"process (\d{1,10}) on (\S{1,255}) since ([\w:.+-]{1,40}|unknown)(?: \((.*)\))?")


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock, as it is written to lock files.

    Attributes:
        since: when it took the lock.
        start: start time of the process in clock ticks since the machine started; 0 if unknown.
        boot, machine, namespace: the current start of the machine, the machine, and the process id namespace of a
            container; empty if unknown.
        token: a random text that differs for every lock taken.
    """

    process: int
    host: str
    since: str = "unknown"
    command: str = ""
    start: int = 0
    boot: str = ""
    machine: str = ""
    namespace: str = ""
    token: str = ""

    @classmethod
    def of_this_process(cls) -> Holder:
        """Return this process, as the holder of a new lock."""
        command = " ".join(" ".join(sys.argv[:8]).split())[:MAX_COMMAND]
        found = _look_up(os.getpid())
        return cls(
            os.getpid(),
            socket.gethostname(),
            datetime.datetime.now().isoformat(timespec="seconds"),
            command,
            found.start if found else 0,
            **_machine(),
            token=secrets.token_hex(8),
        )

    @classmethod
    def parse(cls, content: bytes) -> Holder | None:
        """Read the content of a lock file; None if it names no process."""
        first, _, rest = content.decode("utf-8", errors="replace").partition("\n")
        match = _HOLDER.fullmatch(first.strip())
        if match is None:
            return None
        known: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            known = parse_object(rest.encode())
        texts = {name: str(known.get(name) or "") for name in ("boot", "machine", "namespace", "token")}
        start = known.get("start")
        process, host, since, command = match.groups()
        return cls(int(process), host, since, command or "", start if isinstance(start, int) else 0, **texts)

    def format(self) -> str:
        """Return the content of a lock file: a line for people, and a line of JSON."""
        names = ("start", "boot", "machine", "namespace", "token")
        return f"{self}\n{dump_json({name: getattr(self, name) for name in names})}\n"

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since}" + (f" ({self.command})" * bool(self.command))

    @property
    def is_gone(self) -> bool:
        """Whether the process has certainly ended."""
        if not self._is_on_this_machine:
            return False
        here = _machine()
        if self.boot != here["boot"]:
            return bool(self.boot and here["boot"])
        if self.namespace != here["namespace"]:
            return False
        found = _look_up(self.process)
        return found is None or found.state in ("Z", "X") or bool(self.start and found.start not in (0, self.start))

    @property
    def is_stopped(self) -> bool:
        """Whether the process is known to be stopped, as by Ctrl-Z or SIGSTOP."""
        here = _machine()
        if not self._is_on_this_machine or (self.boot, self.namespace) != (here["boot"], here["namespace"]):
            return False
        found = _look_up(self.process)
        return found is not None and found.state == "T" and found.start == self.start

    @property
    def _is_on_this_machine(self) -> bool:
        return (self.host, self.machine) == (socket.gethostname(), _machine()["machine"])


@dataclasses.dataclass(frozen=True)
class _Process:
    """State (a letter, as in proc(5)) and start time of a process; empty and 0 if unknown."""

    state: str = ""
    start: int = 0


def _look_up(process: int) -> _Process | None:
    """Look a process of this machine up; None if there is none."""
    if os.name == "nt":
        # There, signal 0 would end the process.
        return _Process()
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:
        # It belongs to another user.
        pass
    try:
        # The name of the program, in parentheses, may contain anything.
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
        return _Process(fields[0].decode(), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return _Process()


@functools.cache
def _machine() -> dict[str, str]:
    """Return what tells this machine, its current start and the container from others; empty if unknown."""
    found = {"boot": "/proc/sys/kernel/random/boot_id", "machine": "/etc/machine-id"}
    texts = {}
    for name, path in found.items():
        try:
            texts[name] = Path(path).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            texts[name] = ""
    try:
        texts["namespace"] = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        texts["namespace"] = ""
    return texts


def kernel_holder(path: Path) -> Holder | None:
    """Return the process of this machine that holds a kernel lock (Linux)."""
    try:
        inode = path.lstat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        match = re.match(r"\d+: FLOCK +\w+ +WRITE (\d+) [0-9a-f]+:[0-9a-f]+:(\d+) ", line)
        if match and int(match[2]) == inode and int(match[1]) > 0:
            found = _look_up(int(match[1]))
            return Holder(int(match[1]), socket.gethostname(), start=found.start if found else 0, **_machine())
    return None
