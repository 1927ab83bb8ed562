"""A small server of the routes of the Hugging Face hub that a download uses."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Server(http.server.ThreadingHTTPServer):
    """Serves one model.

    Attributes:
        name: of the model, as owner/name or name.
        folder: its files, which are the same at every commit.
        requested: (method, file) of each request for a file, and the range that it asked for.
        stops_at: number of bytes after which the connection of a file breaks, once; None serves whole files.
        gated: whether the model needs permission.
        altered: names of files that are sent with another last byte.
    """

    daemon_threads = True

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.name, self.folder = name, folder
        self.requested: list[tuple[str, str, str | None]] = []
        self.stops_at: int | None = None
        self.gated = False
        self.altered: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, address = self.server, urlsplit(self.path)
        path = unquote(address.path)
        if path == f"/api/models/{server.name}":
            path += "/revision/main"
        about, file = f"/api/models/{server.name}/revision/", f"/{server.name}/resolve/"
        known = path.startswith((about, file))
        revision = path.removeprefix(about).removeprefix(file).split("/")[0]
        commit = COMMITS.get(revision, revision if revision in COMMITS.values() else None)
        if server.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif not known:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(about):
            self._send(200, json.dumps(self._describe(commit, "blobs" in parse_qs(address.query))).encode(), {})
        else:
            self._send_file(path.removeprefix(f"{file}{revision}/"), commit)

    def _describe(self, commit: str, has_blobs: bool) -> dict[str, object]:
        files = []
        for path in sorted(self.server.folder.iterdir()):
            entry: dict[str, object] = {"rfilename": path.name}
            if has_blobs:
                content = path.read_bytes()
                entry |= {"size": len(content), "blobId": "0" * 40}
                if path.suffix in (".safetensors", ".bin"):
                    sha256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 100}
            files.append(entry)
        return {"id": self.server.name, "sha": commit, "siblings": files}

    def _send_file(self, name: str, commit: str) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.requested.append((self.command, name, wanted))
        path = server.folder / name
        if not path.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if name in server.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status = 200
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            status, content = 206, content[start:]
        stops_at = server.stops_at
        if stops_at is not None and self.command == "GET" and len(content) > stops_at:
            server.stops_at = None
            self._send(status, content, headers, stops_at)
            self.close_connection = True
            return
        self._send(status, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str], n_bytes: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:n_bytes])

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def serving(name: str, folder: Path) -> Iterator[Server]:
    """Run the server while the block runs."""
    with Server(name, folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
