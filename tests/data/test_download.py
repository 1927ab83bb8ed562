import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from nanolm.config.dataset import DownloadConfig, HuggingFaceConfig
from nanolm.config.tokenizer import Gpt2Config
from nanolm.data import corpus, download, tokenizers
from nanolm.errors import DataError, RunError
from tests.helpers import SMALL, Nanolm, train_and_val


@pytest.fixture
def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A local web server: its URL, the folder that it serves, and the paths that were requested."""
    folder = tmp_path / "served"
    folder.mkdir()
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, directory=str(folder), **keywords)  # type: ignore[arg-type]

        def do_GET(self) -> None:
            target = folder / self.path[1:]
            if target.suffix == ".redirect":
                self.send_response(302)
                self.send_header("Location", target.read_text())
                self.end_headers()
            else:
                super().do_GET()

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


def test_fetch_refuses_other_schemes(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, _ = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    (folder / "play.txt").write_text("To be, or not to be")
    for address in (f"file://{folder}/play.txt", str(folder / "play.txt"), "ftp://127.0.0.1/play.txt", "data:,a", ""):
        with pytest.raises(DataError, match="cannot fetch"):
            corpus.load(DownloadConfig(url=address, sha256=None))
    for target in (f"file://{folder}/play.txt", "ftp://127.0.0.1/play.txt", "gopher://127.0.0.1"):
        (folder / "away.redirect").write_text(target)
        with pytest.raises(DataError, match="it redirects from http to"):
            corpus.load(DownloadConfig(url=f"{url}/away.redirect", sha256=None))
    (folder / "here.redirect").write_text("/play.txt")
    assert "".join(train_and_val(DownloadConfig(url=f"{url}/here.redirect", sha256=None))) == "To be, or not to be"


@pytest.mark.parametrize(
    ("before", "after", "is_refused"),
    [
        ("https://8.8.8.8/a", "https://1.1.1.1/a", False),
        ("http://127.0.0.1/a", "http://127.0.0.1:9/a", False),
        ("http://127.0.0.1/a", "https://8.8.8.8/a", False),
        ("https://8.8.8.8/a", "http://1.1.1.1/a", True),
        ("https://8.8.8.8/a", "https://127.0.0.1/a", True),
        ("http://8.8.8.8/a", "http://169.254.169.254/latest/meta-data", True),
        ("http://8.8.8.8/a", "http://[::1]/a", True),
        ("http://8.8.8.8/a", "http://10.0.0.1/a", True),
        ("http://8.8.8.8/a", "http://0/a", True),
        ("http://8.8.8.8/a", "file:///etc/passwd", True),
    ],
)
def test_redirects_to_private_addresses_are_refused(before: str, after: str, is_refused: bool) -> None:
    assert bool(download._refused_redirect(before, after)) == is_refused


def test_fetch_refuses_large_files(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, _ = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "MAX_GIGABYTES", 1e-5)
    (folder / "play.txt").write_text("To be " * 2000)
    with pytest.raises(DataError, match="it has more than"):
        corpus.load(DownloadConfig(url=f"{url}/play.txt", sha256=None))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_addresses_of_a_run_are_not_fetched_unasked(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, requested = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    (folder / "play.txt").write_text("To be, or not to be")
    checksum = hashlib.sha256(b"To be, or not to be").hexdigest()
    config = DownloadConfig(url=f"{url}/play.txt", sha256=checksum)
    with download.only_if_asked(option="--download"):
        with pytest.raises(RunError, match=r"not downloaded unasked[\s\S]*add --download"):
            corpus.load(config)
        with pytest.raises(RunError, match="not downloaded unasked"):
            corpus.load(HuggingFaceConfig(path="someone/something"))
        with pytest.raises(RunError, match=r"tokenizer\.encoder_url of the run"):
            tokenizers.fit(Gpt2Config(encoder_url=f"{url}/play.txt", encoder_sha256=checksum), [])
    with download.only_if_asked({"dataset.sha256"}), pytest.raises(RunError, match=f"add dataset.url={url}/play.txt"):
        corpus.load(config)
    assert requested == []
    with download.only_if_asked({"dataset.url"}):
        corpus.load(config)
    assert requested == ["/play.txt"]
    # The cache has it by its checksum.
    with download.only_if_asked():
        corpus.load(DownloadConfig(url="http://127.0.0.1:9/play.txt", sha256=checksum))
    assert requested == ["/play.txt"]


@pytest.mark.slow
def test_commands_do_not_download_unasked(served, nanolm: Nanolm) -> None:  # type: ignore[no-untyped-def]
    url, folder, requested = served
    (folder / "text.txt").write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(200)))
    dataset = ("dataset=tiny_shakespeare", f"dataset.url={url}/text.txt", "dataset.sha256=null")
    steps = ("trainer.max_steps=2", "model=bigram", "hydra.run.dir=R")
    assert nanolm("train", *SMALL, *dataset, *steps).returncode == 0
    (cached,) = Path(nanolm.environment["NANOLM_CACHE"]).rglob("downloads/*")
    cached.unlink()
    for command in (
        ("evaluate", "R"),
        ("train", "resume=R", "trainer.max_steps=4"),
        ("train", "resume=auto", "hydra.run.dir=R", "trainer.max_steps=4"),
        ("train", "resume=R", "fork=true", "trainer.max_steps=4"),
        ("train", "resume=R", "dry_run=true", "trainer.max_steps=4"),
    ):
        done = nanolm(*command)
        assert (done.returncode, done.stderr.count("not downloaded unasked")) == (2, 1), done.stderr
    assert nanolm("generate", "R", "--prompt", "1").returncode == 0
    assert requested == ["/text.txt"]
    assert nanolm("evaluate", "R", "--download").returncode == 0
    assert nanolm("evaluate", "R").returncode == 0
    cached.unlink()
    assert nanolm("train", "resume=R", "trainer.max_steps=4", f"dataset.url={url}/text.txt").returncode == 0
    assert requested == ["/text.txt"] * 3
