"""Whatever becomes of the wandb server, a run trains as it would without one."""

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import SMALL, Nanolm

TIME_FIELDS = ("seconds", "tokens_per_second")
# What the server says to wandb when a run begins.
BUCKET = {"id": "b", "name": "run", "displayName": "run", "project": {"name": "nanolm", "entity": {"name": "me"}}}
ANSWERS = {
    "RunResumeStatus": {"model": {"id": "p", "name": "nanolm", "entity": {"id": "e", "name": "me"}, "bucket": None}},
    "UpsertBucket": {"upsertBucket": {"bucket": BUCKET, "inserted": True}},
}


class Server(http.server.ThreadingHTTPServer):
    """Stands where wandb's server would."""

    daemon_threads = True
    how = "dead"
    was_called = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has given up is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """Breaks down in the way that its server is told to."""

    server: Server

    def do_POST(self) -> None:
        self.server.was_called = True
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.how == "silent":
            time.sleep(600)
        if self.server.how == "broken":
            self.send_error(500)
            return
        operation = (
            re.search(r"(?:query|mutation)\s+(\w+)", json.loads(content)["query"]) if b"query" in content else None
        )
        answer = json.dumps({"data": ANSWERS.get(operation[1], {})} if operation else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        if "file_stream" in self.path:
            # The first rows are in, and nothing more.
            threading.Thread(target=stop, args=(self.server,)).start()

    do_GET = do_POST  # noqa: N815  as the library calls it

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


def stop(server: Server) -> None:
    server.shutdown()
    server.server_close()


@contextmanager
def a_server(how: str) -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Answer)
    server.how = how
    if how == "dead":
        server.server_close()
        yield server
        return
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        stop(server)


def rows(folder: Path) -> list[dict[str, object]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIME_FIELDS} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "steps"),
    # The last is long enough for the first rows to be sent.
    [("dead", 20), ("broken", 20), ("silent", 20), ("dies midway", 5000)],
)
def test_an_outage_changes_no_row(how: str, steps: int, nanolm: Nanolm, small_text: Path) -> None:
    line = ("train", "dataset=text", f"dataset.path={small_text}", *SMALL, f"trainer.max_steps={steps}")
    line = (*line, f"trainer.eval_every={steps}", f"trainer.save_every={steps}")
    assert nanolm(*line, "hydra.run.dir=without", timeout=300).returncode == 0
    with a_server(how) as server:
        del nanolm.environment["WANDB_MODE"]
        nanolm.environment |= {"WANDB_API_KEY": "0123456789" * 4, "WANDB_BASE_URL": server.url}
        done = nanolm(*line, "logger=wandb", "hydra.run.dir=with", timeout=300)
    assert done.returncode == 0, done.stderr
    assert server.was_called == (how != "dead")
    assert rows(nanolm.folder / "with") == rows(nanolm.folder / "without")
    summary = json.loads((nanolm.folder / "with" / "summary.json").read_text())
    assert (summary["status"], summary["step"]) == ("completed", steps)
    log = (nanolm.folder / "with" / "train.log").read_text()
    if how == "dies midway":
        assert summary["wandb_mode"] == "online"
        assert "wandb does not answer; what it has not sent is in metrics.jsonl" in log
        return
    assert summary["wandb_mode"] == "offline"
    began, told = (
        datetime.fromisoformat(next(line for line in log.splitlines() if words in line)[:19])
        for words in ("run directory", "wandb does not answer")
    )
    assert (told - began).total_seconds() <= 15


def test_a_port_that_nobody_listens_on_refuses() -> None:
    with a_server("dead") as server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.server_address[:2], timeout=5)
