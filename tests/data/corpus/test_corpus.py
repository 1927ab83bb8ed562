import hashlib
import http.server
import random
import threading
from pathlib import Path

import pytest

from nanolm.config.dataset import (
    Bom,
    DatasetConfig,
    DownloadConfig,
    Newlines,
    Nul,
    PythonDocsConfig,
    SplitBy,
    TextConfig,
)
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.errors import DataError


def split(config: DatasetConfig) -> tuple[str, str]:
    loaded = corpus.load(config)
    assert loaded.splits == ("train", "val")
    return "".join(loaded.documents("train")), "".join(loaded.documents("val"))


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


def test_the_fingerprint_is_of_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "a.txt").write_text("é\nb\nc\n", encoding="utf-8")
    (tmp_path / "two" / "a.txt").write_text("é\nb", encoding="utf-8")
    (tmp_path / "two" / "b.txt").write_text("c\n", encoding="utf-8")
    one, two = (corpus.load(TextConfig(path=str(tmp_path / name))) for name in ("one", "two"))
    assert "".join(one.documents("train")) == "".join(two.documents("train"))
    assert one.fingerprint != two.fingerprint
    monkeypatch.setattr(reading, "PART_BYTES", 3)
    assert corpus.load(one.config).fingerprint == one.fingerprint


def test_line_ends_and_byte_order_marks_are_kept_or_normalised(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\xef\xbb\xbf\0")
    kept = TextConfig(path=str(tmp_path / "a.txt"))
    assert "".join(split(kept)) == "\ufeffa\r\nb\rc\n\ufeff\0"
    mended = TextConfig(path=kept.path, newlines=Newlines.normalize, bom=Bom.strip)
    assert "".join(split(mended)) == "a\nb\nc\n\ufeff\0"


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
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    for name in ("loop.txt", "x" * 300, "."):
        with pytest.raises(DataError, match=r"there is no file|cannot read the file: File name too long"):
            corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / name)))
    with pytest.raises(DataError, match="there is no file"):
        corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / "none.txt")))


def test_an_empty_document_is_passed_over_and_nul_is_kept(tmp_path: Path) -> None:
    for name, text in {"a": "A\0A", "b": "", "c": "\n", "d": "D"}.items():
        (tmp_path / name).write_text(text)
    loaded = corpus.load(TextConfig(path=str(tmp_path)))
    assert "".join(split(loaded.config)) == "A\0A\n\n\nD"
    assert loaded.n_documents == {"train": 3}


def test_a_long_file_is_read_in_parts_that_end_with_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 64)
    drawn = random.Random(0)
    text = "".join(drawn.choice("aé€𝄞\n\r \0") for _ in range(5000)) + "x" * 300 + "\nend"
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = list(corpus.read_utf8(tmp_path / "a.txt", allow_nul=True))
    assert "".join(part.text for part in parts) == text
    assert len(parts) > 50
    assert all(part.text.endswith("\n") for part in parts[:-1])
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]
    train, val = split(TextConfig(path=str(tmp_path / "a.txt"), val_fraction=0.3, nul=Nul.allow))
    assert (train, val) == (text[: int(len(text) * 0.7)], text[int(len(text) * 0.7) :])


@pytest.mark.parametrize("at", [0, 1, 62, 63, 64, 65, 127, 128, 200])
def test_the_offset_of_a_bad_byte_counts_from_the_beginning_of_the_file(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 64)
    # A character of two bytes ends just before it where there is room, so that reads cut through characters.
    content = b"a" * (at % 2) + "é".encode() * (at // 2) + b"\xff" + b"abc\n" * 40
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"byte {at} \(0xff\) is not UTF-8[\s\S]*byte offset {at}\b"):
        corpus.load(TextConfig(path=str(tmp_path / "bad.txt")))
    (tmp_path / "cut.txt").write_bytes(b"a" * at + "é".encode()[:1])
    with pytest.raises(DataError, match=rf"byte {at} \(0xc3\)"):
        corpus.load(TextConfig(path=str(tmp_path / "cut.txt")))


def joined(loaded: corpus.Corpus) -> dict[str, str]:
    return {name: "".join(loaded.documents(name)) for name in loaded.splits}


def test_a_test_split_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    loaded = corpus.load(TextConfig(path=str(tmp_path / "a.txt"), val_fraction=0.2, test_fraction=0.3))
    assert joined(loaded) == {"train": "abcde", "val": "fg", "test": "hij"}


def test_whole_documents_are_held_out(tmp_path: Path) -> None:
    documents = [f"{n} begins\n{n} ends" for n in range(40)]
    for n, text in enumerate(documents):
        (tmp_path / f"{n:02d}").write_text(text)
    config = TextConfig(path=str(tmp_path), split_by=SplitBy.document, val_fraction=0.2, test_fraction=0.1)
    loaded = corpus.load(config)
    found = {name: list(loaded.documents(name)) for name in loaded.splits}
    assert {name: len(inside) for name, inside in found.items()} == {"train": 28, "val": 8, "test": 4}
    assert sorted(text.removesuffix("\n") for inside in found.values() for text in inside) == sorted(documents)
    assert all(inside == sorted(inside, key=lambda text: int(text.split()[0])) for inside in found.values())
    config.split_seed = 1
    assert list(corpus.load(config).documents("val")) != found["val"]


def test_random_lines_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {n}\n" for n in range(499)] + ["last"]
    (tmp_path / "a.txt").write_text("".join(lines))
    config = TextConfig(path=str(tmp_path / "a.txt"), split_by=SplitBy.line)
    texts = joined(corpus.load(config))
    assert len(texts["val"].splitlines()) == 50
    assert sorted(line for text in texts.values() for line in text.splitlines(True)) == sorted(lines)
    assert texts["val"] not in "".join(lines)
    monkeypatch.setattr(reading, "PART_BYTES", 100)
    assert joined(corpus.load(config)) == texts


def test_val_and_test_may_have_files_of_their_own(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / name).write_text(f"text of {name}")
    paths = {f"{name}_path": str(tmp_path / name) for name in ("val", "test")}
    both = corpus.load(TextConfig(path=str(tmp_path / "train"), **paths))
    assert joined(both) == {name: f"text of {name}" for name in ("train", "val", "test")}
    only_test = corpus.load(TextConfig(path=str(tmp_path / "train"), test_path=paths["test_path"], val_fraction=0.5))
    assert joined(only_test) == {"train": "text o", "val": "f train", "test": "text of test"}
    assert both.fingerprint != only_test.fingerprint


def test_too_few_documents_to_split_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document\nof two lines")
    with pytest.raises(DataError, match=r"has 1 documents, and the splits train, val need at least 2"):
        corpus.load(TextConfig(path=str(tmp_path / "a.txt"), split_by=SplitBy.document))
    with pytest.raises(DataError, match=r"has 2 lines, and the splits train, val, test need at least 3"):
        corpus.load(TextConfig(path=str(tmp_path / "a.txt"), split_by=SplitBy.line, test_fraction=0.1))


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    loaded = corpus.load(TextConfig(path=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_text("two text")
    with pytest.raises(DataError, match="changed while it was being read"):
        list(loaded.documents("train"))
