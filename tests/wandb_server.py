"""A fake wandb server that stores what it receives, or fails in a given way."""

import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Server(http.server.ThreadingHTTPServer):
    """A fake wandb server.

    Attributes:
        behavior: "sound"; "dead" (refuses connections); "silent" (never responds); "broken" (status 500); "dies midway"
            (stops after the first rows).
        introduced: variables of the request that created each run, by its id.
        rows: history rows by run id.
        files: uploaded texts by path.
        ended: ids of completed runs.
        received: bodies of all requests.
    """

    daemon_threads = True

    def __init__(self, behavior: str) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.behavior = behavior
        self.was_called = False
        self.introduced: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, str] = {}
        self.ended: set[str] = set()
        self.received: list[bytes] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that close the connection early."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        server.was_called = True
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        server.received.append(content)
        if server.behavior == "silent":
            time.sleep(600)
        if server.behavior == "broken":
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
        if "file_stream" in self.path and server.behavior == "dies midway":
            threading.Thread(target=stop, args=(server,)).start()

    do_GET = do_PUT = do_POST  # noqa: N815  names of http.server

    def _take_rows(self, content: dict[str, Any]) -> None:
        run_id = self.path.split("/")[-2]
        lines = (content.get("files") or {}).get("wandb-history.jsonl", {}).get("content", [])
        self.server.rows.setdefault(run_id, []).extend(map(json.loads, lines))
        if content.get("complete"):
            self.server.ended.add(run_id)

    def _data(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL request with the fields that wandb reads."""
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
        """Log nothing."""


def stop(server: Server) -> None:
    server.shutdown()
    server.server_close()


@contextmanager
def run_server(behavior: str) -> Iterator[Server]:
    """Run a fake server on a free port; a dead one is closed before use."""
    server = Server(behavior)
    if behavior == "dead":
        server.server_close()
        yield server
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        stop(server)
