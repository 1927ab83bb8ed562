"""The server of the page, on 127.0.0.1 only: its port, its token, and the texts that are being written."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socketserver
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import ThreadingHTTPServer
from typing import Any

from nanolm.errors import SettingsError
from nanolm.playground.access import ADDRESS
from nanolm.playground.handler import IS_GONE, Handler
from nanolm.playground.page import page_files
from nanolm.playground.session import PlaygroundRun

# Ports that are tried, from the wanted one.
N_PORTS = 100

# Seconds to wait for texts that are being written when the server ends.
CLOSING_SECONDS = 5.0


class PlaygroundServer(ThreadingHTTPServer):
    """Serves the page of some runs.

    Args:
        runs: the runs, in the order of the page.
        port: wanted port, or 0 for any. If it is taken, the next free one is used.

    Raises:
        SettingsError: no port is free, or the port needs privileges.
    """

    daemon_threads = True
    # On Windows the option would let two servers share a port.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, runs: Sequence[PlaygroundRun], port: int) -> None:
        self.runs = list(runs)
        self.files = page_files()
        self.token = secrets.token_urlsafe(16)
        self.is_closing = threading.Event()
        self._n_streams = 0
        self._streams = threading.Condition()
        last = min(port + N_PORTS - 1, 65535) if port else 0
        for candidate in range(port, last + 1):
            with _free_port(candidate):
                super().__init__((ADDRESS, candidate), Handler)
                return
        raise SettingsError(
            f"the ports from {port} to {last} are taken", where="--port", hint="--port 0 chooses a free one"
        )

    def server_bind(self) -> None:
        """Bind without a look-up of the host's name, which may wait for a network."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def close(self) -> None:
        """Stop all texts and free the port."""
        self.is_closing.set()
        self.server_close()
        with self._streams:
            self._streams.wait_for(lambda: not self._n_streams, CLOSING_SECONDS)

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Count a text that is being written, for `close`."""
        with self._streams:
            self._n_streams += 1
        try:
            yield
        finally:
            with self._streams:
                self._n_streams -= 1
                self._streams.notify_all()

    @property
    def n_streams(self) -> int:
        """Number of texts that are being written."""
        return self._n_streams

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error, unless the browser has gone away."""
        if not isinstance(sys.exception(), IS_GONE):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def _free_port(port: int) -> Iterator[None]:
    """Suppress the error of a port that is taken."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EACCES and port < 1024:
            raise SettingsError(
                f"--port {port} needs the privileges of an administrator", where="--port", hint="1024 or more"
            ) from error
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
