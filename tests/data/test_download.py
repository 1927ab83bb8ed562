import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from nanolm.config.dataset import (
    DownloadConfig,
)
from nanolm.data import corpus
from nanolm.errors import DataError
from tests.helpers import train_and_val


@pytest.fixture
def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A local web server: its URL, the folder that it serves, and the paths that were requested."""
    folder = tmp_path / "served"
    folder.mkdir()
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, directory=str(folder), **keywords)  # type: ignore[arg-type]

        def log_request(self, *_: object) -> None:
            requested.append(self.path)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder, requested
        server.shutdown()


def test_fetch_downloads_once_and_verifies(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, requested = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    (folder / "play.txt").write_text("To be, or not to be")
    config = DownloadConfig(url=f"{url}/play.txt", sha256=hashlib.sha256(b"To be, or not to be").hexdigest())
    assert "".join(train_and_val(config)) == "To be, or not to be"
    assert "".join(train_and_val(config)) == "To be, or not to be"
    assert requested == ["/play.txt"]
    (cached,) = (tmp_path / "cache").rglob("*play.txt")
    cached.write_text("To be, or nut to be")
    assert "".join(train_and_val(config)) == "To be, or not to be"
    assert requested == ["/play.txt"] * 2


def test_fetch_refuses_other_bytes(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, _ = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    (folder / "play.txt").write_text("Something else")
    with pytest.raises(DataError, match="not the expected file"):
        corpus.load(DownloadConfig(url=f"{url}/play.txt", sha256="0" * 64))
    with pytest.raises(DataError, match="cannot fetch"):
        corpus.load(DownloadConfig(url=f"{url}/missing.txt", sha256="0" * 64))


def test_fetch_without_network_gives_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cannot fetch[\s\S]*dataset.path=FILE"):
        corpus.load(DownloadConfig(url="http://127.0.0.1:9/play.txt", sha256="0" * 64))
    assert not list((tmp_path / "cache").rglob("*.txt"))
