"""The driver's side of the process that is connected to a Ray cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import socket
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

from nanolm.errors import SettingsError, SweepError
from nanolm.machine import n_cores
from nanolm.signals import without_interrupts
from nanolm.sweeps.launchers.ray import process as ray_process
from nanolm.sweeps.launchers.ray.process import OUTPUT, Answered, Imported, Refused, Setup, Surveyed
from nanolm.sweeps.launchers.ray.settings import AUTO, Node, RayConfig, split_address
from nanolm.sweeps.shared_disk import Token

# Seconds in which the process must import Ray, and in which a local cluster must start.
START_TIMEOUT = 180.0
# Seconds in which the nodes must answer, each of which is given a minute.
SURVEY_TIMEOUT = 90.0
# Ray's sockets are in its folder, and their paths have at most 107 bytes.
MAX_PATH = 30
# The start of a line that Ray always writes.
NOTICE = "Token authentication is enabled"
# Characters of Ray's own message in an error.
MAX_WORDS = 300


class RayConnection:
    """A process that is connected to a cluster. It is ended at the end of its context.

    Args:
        token: in the directory of the sweep, which the nodes look for; None: they do not.

    Raises:
        SettingsError: nothing listens at the address.
    """

    def __init__(self, settings: RayConfig, token: Token | None = None) -> None:
        self._settings = settings
        if settings.address not in (None, AUTO):
            _knock(str(settings.address), settings.connect_timeout)
        root = tempfile.gettempdir()
        self._scratch = Path(tempfile.mkdtemp(prefix="nanolm-ray-", dir=root if len(root) <= MAX_PATH else "/tmp"))
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        setup = Setup(settings, n_cores(), token, self._scratch)
        self._process = context.Process(target=ray_process.main, args=(theirs, setup), name="ray", daemon=True)
        with without_interrupts():
            self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def nodes(self) -> list[Node]:
        """Wait until the cluster and its nodes have answered, and return the nodes.

        Raises:
            SettingsError: it does not answer in time, or with an error.
            SweepError: the process has ended.
        """
        is_local = self._settings.address is None
        self._expect(Imported, START_TIMEOUT)
        self._expect(Answered, START_TIMEOUT if is_local else self._settings.connect_timeout)
        return self._expect(Surveyed, SURVEY_TIMEOUT).nodes

    def _expect(self, kind: type[Any], timeout: float) -> Any:
        message = self.receive(timeout)
        if isinstance(message, kind):
            return message
        if isinstance(message, Refused):
            raise message.error
        self._process.kill()
        address = self._settings.address
        if kind is Imported:
            raise SweepError(f"the process of Ray did not start within {timeout:.0f} s", where="hydra/launcher=ray")
        if kind is Surveyed:
            raise SettingsError("the nodes of the Ray cluster do not answer", where=f"hydra.launcher.address={address}")
        if address is None:
            raise SweepError(f"no local Ray cluster started within {timeout:.0f} s", where="hydra/launcher=ray")
        said = f"; the last words of Ray: {words}" if (words := self._last_words()) else ""
        raise _unanswered(address, f"does not answer within {self._settings.connect_timeout:g} s{said}")

    def send(self, message: Any) -> None:
        """Send a message, unless the process has ended, which `receive` reports."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self, timeout: float) -> Any:
        """Return the next message; None if there is none for a number of seconds.

        Raises:
            SweepError: the process has ended.
        """
        if not wait([self._connection, self._process.sentinel], timeout):
            return None
        try:
            if self._connection.poll():
                return self._connection.recv()
        except (EOFError, OSError):
            pass
        self._process.join()
        code = self._process.exitcode or 0
        how = f"its process was killed by {signal.Signals(-code).name}" if code < 0 else self._last_words()
        raise SweepError(
            f"the connection to the Ray cluster was lost: {how or f'its process exited with status {code}'}",
            where=f"hydra.launcher.address={self._settings.address or 'null'}",
            hint="when the cluster runs again, repeat the command, which resumes the jobs",
        )

    def close(self) -> None:
        """End the process, which lets running jobs save a checkpoint and ends a local cluster."""
        self._connection.close()
        self._process.join()
        if self._settings.address is None and hasattr(os, "killpg") and self._process.pid is not None:
            # If it was killed, processes of the cluster are left in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _last_words(self) -> str:
        """Return the last line that the process wrote, without time and place; empty if there is none."""
        with contextlib.suppress(OSError):
            text = (self._scratch / OUTPUT).read_text(encoding="utf-8", errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(NOTICE)]
            if lines:
                return re.sub(r"^\[[^]]*\] \S+:\d+: ", "", lines[-1])[:MAX_WORDS]
        return ""


def survey(settings: RayConfig) -> list[Node]:
    """Connect to a cluster, ask its nodes for their versions, and disconnect.

    Raises:
        SettingsError, SweepError: as `RayConnection.nodes`.
    """
    with RayConnection(settings) as connection:
        return connection.nodes()


def _knock(address: str, timeout: float) -> None:
    """Open and close a connection to an address: Ray itself would try for two minutes.

    Raises:
        SettingsError: nothing listens there.
    """
    try:
        with socket.create_connection(split_address(address), timeout):
            return
    except TimeoutError as error:
        raise _unanswered(address, f"does not answer within {timeout:g} s") from error
    except OSError as error:
        raise _unanswered(address, f"does not answer: {error.strerror or error}") from error


def _unanswered(address: str, problem: str) -> SettingsError:
    return SettingsError(
        f"the Ray cluster {problem}",
        where=f"hydra.launcher.address={address}",
        hint="`ray status` on its head shows whether it runs; address=null starts a cluster on this machine",
    )
