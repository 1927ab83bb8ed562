"""A server in the place of wandb's: a sound one keeps what it is sent, the others break down as they are told."""

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """Stands where wandb's server would.

    Attributes:
        how: sound, dead, silent, broken, or "dies midway", after the first rows.
        introduced: how each run was introduced, by its id.
        rows: what came in as its history.
        files: the text of what was uploaded, by the end of its path.
        ended: the runs that were said to be at their end.
    """

    daemon_threads = True

    def __init__(self, how: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.how = how
        self.was_called = False
        self.introduced: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, str] = {}
        self.ended: set[str] = set()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has given up is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """What the server says to one request."""

    server: Server

    def do_POST(self) -> None:
        server = self.server
        server.was_called = True
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if server.how == "silent":
            time.sleep(600)
        if server.how == "broken":
            self.send_error(500)
            return
        answer: dict[str, Any] = {}
        if self.path.startswith("/upload/"):
            server.files[self.path.removeprefix("/upload/")] = content.decode()
        elif "file_stream" in self.path:
            self._take_rows(json.loads(content))
        elif b"query" in content:
            answer = {"data": self._data(json.loads(content))}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if "file_stream" in self.path and server.how == "dies midway":
            threading.Thread(target=stop, args=(server,)).start()

    do_GET = do_PUT = do_POST  # noqa: N815  as the library calls them

    def _take_rows(self, content: dict[str, Any]) -> None:
        run_id = self.path.split("/")[-2]
        lines = (content.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
        self.server.rows.setdefault(run_id, []).extend(map(json.loads, lines))
        if content.get("complete"):
            self.server.ended.add(run_id)

    def _data(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question about runs, as much of it as wandb reads."""
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        asked, project = request.get("variables") or {}, {"name": "nanolm", "entity": {"name": "me"}}
        match operation and operation[1]:
            case "RunResumeStatus":
                return {"model": {"id": "p", "name": "nanolm", "entity": {"id": "e", "name": "me"}, "bucket": None}}
            case "UpsertBucket":
                name = asked["name"]
                self.server.introduced.setdefault(name, asked)
                bucket = {"id": f"b-{name}", "name": name, "displayName": asked["displayName"], "project": project}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateRunFiles":
                files = [
                    {"name": name, "uploadUrl": f"{self.server.url}/upload/{asked['run']}/{name}"}
                    for name in asked["files"]
                ]
                return {"createRunFiles": {"runID": f"b-{asked['run']}", "uploadHeaders": [], "files": files}}
            case _:
                return {}

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def stop(server: Server) -> None:
    server.shutdown()
    server.server_close()


@contextmanager
def a_server(how: str) -> Iterator[Server]:
    """A server on a port of its own, stopped at the end; a dead one leaves its address alone."""
    server = Server(how)
    if how == "dead":
        server.server_close()
        yield server
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        stop(server)
