import hashlib
import http.server
import threading
from pathlib import Path

import pytest

from nanolm.config import DatasetConfig, DownloadConfig, PythonDocsConfig, TextConfig
from nanolm.data import corpus
from nanolm.errors import DataError


def split(config: DatasetConfig) -> tuple[str, str]:
    loaded = corpus.load(config)
    return loaded.splits["train"], loaded.splits["val"]


def test_python_docs_are_on_every_machine() -> None:
    train, val = split(PythonDocsConfig())
    assert 'The "assert" statement' in train
    assert len(val) == pytest.approx(0.1 * len(train + val), abs=1)
    assert len(train + val) > 200_000


def test_the_validation_text_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    assert split(TextConfig(path=str(tmp_path / "a.txt"), val_fraction=0.2)) == ("abcdefgh", "ij")


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "B", "a.md": "A", "sub/c.txt": "C", ".hidden": "H"}.items():
        (tmp_path / name).write_text(text)
    assert "".join(split(TextConfig(path=str(tmp_path)))) == "A\nB\nC"
    assert "".join(split(TextConfig(path=f"{tmp_path}/**/*.txt"))) == "B\nC"


def test_the_fingerprint_is_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é", encoding="utf-8")
    assert corpus.load(TextConfig(path=str(tmp_path / "a.txt"))).fingerprint == hashlib.sha256("é".encode()).hexdigest()


def test_line_ends_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\r\nb\rc\n")
    assert corpus.read_utf8(tmp_path / "a.txt") == "a\r\nb\rc\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"abc\xffdef", r"byte 3 \(0xff\) is not UTF-8[\s\S]*byte offset 3")],
)
def test_a_bad_file_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        corpus.load(TextConfig(path=str(path)))
    assert "bad.txt" in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files"):
        corpus.load(TextConfig(path=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="no file, folder or match of"):
        corpus.load(TextConfig(path=str(tmp_path / "*.nothing")))


@pytest.fixture
def served(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A web server on this machine, the folder it serves, and the paths that were asked of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **keywords: object) -> None:
            super().__init__(*arguments, directory=str(folder), **keywords)  # type: ignore[arg-type]

        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder, asked
        server.shutdown()


def test_a_download_is_fetched_once_and_verified(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, asked = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    (folder / "play.txt").write_text("To be, or not to be")
    config = DownloadConfig(url=f"{url}/play.txt", sha256=hashlib.sha256(b"To be, or not to be").hexdigest())
    assert "".join(split(config)) == "To be, or not to be"
    assert "".join(split(config)) == "To be, or not to be"
    assert asked == ["/play.txt"]
    (cached,) = (tmp_path / "cache").rglob("*play.txt")
    cached.write_text("To be, or nut to be")
    assert "".join(split(config)) == "To be, or not to be"
    assert asked == ["/play.txt"] * 2


def test_a_download_with_other_bytes_is_refused(served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    url, folder, _ = served
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    (folder / "play.txt").write_text("Something else")
    with pytest.raises(DataError, match="not the file that was asked for"):
        corpus.load(DownloadConfig(url=f"{url}/play.txt", sha256="0" * 64))
    with pytest.raises(DataError, match="cannot fetch"):
        corpus.load(DownloadConfig(url=f"{url}/missing.txt", sha256="0" * 64))


def test_no_network_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"cannot fetch[\s\S]*dataset.path=FILE"):
        corpus.load(DownloadConfig(url="http://127.0.0.1:9/play.txt", sha256="0" * 64))
    assert not list((tmp_path / "cache").rglob("*.txt"))


def test_a_local_copy_must_have_the_same_bytes(shakespeare: Path, tmp_path: Path) -> None:
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    train, val = split(DownloadConfig(url="", sha256=sha256, path=str(shakespeare)))
    assert (len(train), len(val)) == (1_003_854, 111_540)
    (tmp_path / "other.txt").write_text("First Citizen:")
    with pytest.raises(DataError, match=r"14 bytes with\s+sha256"):
        corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / "other.txt")))
    with pytest.raises(DataError, match="there is no file"):
        corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / "none.txt")))
