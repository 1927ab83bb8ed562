"""The protocol of the page.

    GET  /TOKEN/             the page, with its page.css and page.js
    GET  /TOKEN/runs         descriptions of the runs
    POST /TOKEN/generate     events of a text, one JSON object per line, as they happen
    POST /TOKEN/attention    what the last token of a text attends to

The address contains a random token, so that no other user or page knows it. A request is refused (403) without the
token, if its Host is not this machine, as after DNS rebinding, and if a page of another origin has sent it.
"""

from __future__ import annotations

import contextlib
import http
import select
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from nanolm.errors import NanolmError
from nanolm.json_text import dump_json
from nanolm.playground.access import allowed_place
from nanolm.playground.page import CONTENT_SECURITY_POLICY
from nanolm.playground.requests import (
    MAX_BODY_BYTES,
    RequestError,
    TooLargeError,
    read_attention_request,
    read_write_request,
)
from nanolm.playground.session import Event, describe_errors

if TYPE_CHECKING:
    from nanolm.playground.server import PlaygroundServer

# Bytes of a refused request that are read, so that the browser reads the answer; seconds to wait for them.
MAX_DISCARDED_BYTES = 64 << 20

# Seconds that a browser may neither send nor receive.
TIMEOUT = 30.0

# Errors of a connection whose browser has gone away.
IS_GONE = (ConnectionError, TimeoutError)


class Handler(BaseHTTPRequestHandler):
    """One connection of a browser."""

    server: PlaygroundServer
    protocol_version = "HTTP/1.1"
    server_version = "nanolm"
    sys_version = ""
    timeout = TIMEOUT
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    # Every method that a browser knows gets an answer.
    do_POST = do_HEAD = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = do_GET  # noqa: N815

    def _answer(self) -> None:
        self._has_read_body = False
        try:
            self._route()
        except IS_GONE:
            self.close_connection = True
        except NanolmError as error:
            self._refuse(error)

    def _route(self) -> None:
        """Call the function of an address.

        Raises:
            NanolmError: the request is refused.
        """
        if self.server.is_closing.is_set():
            # A connection that was opened before.
            self.close_connection = True
            raise _error(503, "the playground has ended", "start `nanolm playground` again")
        place = allowed_place(self.command, self.path, self.headers, self.server.token)
        if place is None:
            self._respond(http.HTTPStatus.PERMANENT_REDIRECT, "text/plain", b"", Location=f"/{self.server.token}/")
            return
        routes: dict[str, tuple[str, Callable[[], None]]] = {
            "runs": ("GET", self._runs),
            "generate": ("POST", self._generate),
            "attention": ("POST", self._attention),
            **{name: ("GET", lambda name=name: self._file(name)) for name in self.server.files},  # type: ignore[misc]
        }
        if place not in routes:
            raise _error(404, "there is no such page", f"open {self.server.url}")
        method, function = routes[place]
        if self.command != method:
            self._allowed_method = method
            raise _error(405, f"the method is {self.command}", method)
        function()

    def _file(self, name: str) -> None:
        content_type, content = self.server.files[name]
        self._respond(http.HTTPStatus.OK, content_type, content)

    def _runs(self) -> None:
        self._respond_json(http.HTTPStatus.OK, {"runs": [run.describe() for run in self.server.runs]})

    def _attention(self) -> None:
        request = read_attention_request(self._body(), len(self.server.runs))
        found = self.server.runs[request.run].attention(request.tokens, request.length)
        self._respond_json(http.HTTPStatus.OK, found)

    def _generate(self) -> None:
        request = read_write_request(self._body(), len(self.server.runs))
        run = self.server.runs[request.run]
        with self.server.streaming():
            self._stream(run.events(request.prompt, request.settings, self._is_stopped))

    def _is_stopped(self) -> bool:
        """Return whether the browser has gone away, or the server ends."""
        if self.server.is_closing.is_set():
            return True
        try:
            is_readable = bool(select.select([self.connection], [], [], 0)[0])
            return is_readable and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _stream(self, events: Iterator[Event]) -> None:
        """Send each event at once, as a chunk of the response."""
        is_chunked = self.request_version != "HTTP/1.0"
        self.send_response(http.HTTPStatus.OK)
        self._send_headers("application/x-ndjson; charset=utf-8")
        if is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()
        try:
            for event in events:
                line = f"{dump_json(event, separators=(',', ':'))}\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line) if is_chunked else line)
            if is_chunked:
                self.wfile.write(b"0\r\n\r\n")
        except BaseException:
            # The response is incomplete: the browser must not take the next one for the rest of it.
            self.close_connection = True
            raise

    def _body(self) -> bytes:
        """Read the body of a request.

        Raises:
            RequestError: it is not JSON by its header, has no length, or is too long.
        """
        if self.headers.get_content_type() != "application/json":
            raise _error(415, "the request is not JSON by its header", "Content-Type: application/json")
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            raise _error(411, "the request has no length", "Content-Length: N")
        if not (length.isascii() and length.isdigit()):
            raise _error(400, "the length of the request is not a number", "Content-Length: N")
        if len(length) > 18 or int(length) > MAX_BODY_BYTES:
            raise TooLargeError(
                f"the request has {length} bytes", where="Content-Length", hint=f"at most {MAX_BODY_BYTES:,}"
            )
        body = self.rfile.read(int(length))
        self._has_read_body = True
        if len(body) < int(length):
            raise ConnectionAbortedError
        return body

    def _refuse(self, error: NanolmError) -> None:
        """Send an error; the connection is closed if the request has not been read."""
        status = getattr(error, "status", 400 if error.exit_status == 2 else 500)
        with contextlib.suppress(*IS_GONE):
            if not self._has_read_body:
                self._discard_body()
            headers = {"Allow": self._allowed_method} if status == 405 else {}
            if self.command == "POST":
                self._respond_json(status, {"errors": describe_errors(error)}, **headers)
            else:
                self._respond(status, "text/plain; charset=utf-8", f"{error}\n".encode(errors="replace"), **headers)

    def _discard_body(self) -> None:
        """Read what the browser still sends: it may not read an answer before."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return
        length = self.headers.get("Content-Length", "0")
        left = int(length) if length.isascii() and length.isdigit() and len(length) <= 18 else 0
        self.close_connection = self.close_connection or length != "0"
        left = min(left, MAX_DISCARDED_BYTES)
        while left and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)

    def _respond_json(self, status: int, value: Any, **headers: str) -> None:
        content = dump_json(value, separators=(",", ":")).encode()
        self._respond(status, "application/json; charset=utf-8", content, **headers)

    def _respond(self, status: int, content_type: str, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self._send_headers(content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_headers(self, content_type: str) -> None:
        for name, value in (
            ("Content-Type", content_type),
            ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            # The address has the token.
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that http.server cannot read, as a plain text that does not repeat it."""
        self.close_connection = True
        self.command = self.command or ""
        self._respond(code, "text/plain; charset=utf-8", f"{http.HTTPStatus(code).phrase}\n".encode())

    def version_string(self) -> str:
        return self.server_version

    def log_message(self, format: str, *values: Any) -> None:
        """Print nothing: the terminal shows the address, which a log would scroll away."""


def _error(status: int, found: str, hint: str) -> RequestError:
    error = RequestError(found, where="the request", hint=hint)
    error.status = status
    return error
