import json
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanolm.config.dataset import (
    Bom,
    DatasetConfig,
    DownloadConfig,
    HuggingFaceConfig,
    JsonlConfig,
    Newlines,
    PythonDocsConfig,
    PythonStdlibConfig,
    TextConfig,
)
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.data.corpus.loading import read_documents
from nanolm.errors import DataError
from nanolm.registry import DATASETS
from tests.helpers import full_text, make_config, train_and_val


def test_python_docs_are_on_every_machine() -> None:
    train, val = train_and_val(PythonDocsConfig())
    assert 'The "assert" statement' in train
    assert len(val) == pytest.approx(0.1 * len(train + val), abs=1)
    assert len(train + val) > 200_000


def test_text_reads_folder_and_glob_in_path_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, text in {"b.txt": "B", "a.md": "A", "sub/c.txt": "C", ".hidden": "H"}.items():
        (tmp_path / name).write_text(text)
    assert "".join(train_and_val(TextConfig(path=str(tmp_path)))) == "A\nB\nC"
    assert "".join(train_and_val(TextConfig(path=f"{tmp_path}/**/*.txt"))) == "B\nC"


def test_text_hint_for_folder_excludes_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.bin").write_bytes(b"\xff\0\xfe\0" * 9)
    with pytest.raises(DataError, match=rf"by a glob: 'dataset.path={tmp_path}/\*\*/\*.txt") as caught:
        corpus.load(TextConfig(path=str(tmp_path)))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_bytes(b"\xff")
    with pytest.raises(DataError) as of_text:
        corpus.load(TextConfig(path=f"{tmp_path}/sub/*"))
    assert "by a glob" not in of_text.value.hint
    (tmp_path / "sub" / "c.txt").unlink()
    glob = caught.value.hint.rpartition("dataset.path=")[2].strip("'")
    assert full_text(TextConfig(path=glob)) == "text"


def test_python_stdlib_excludes_tests_in_path_order() -> None:
    documents = [part.text for part in read_documents(PythonStdlibConfig())]
    assert len(documents) > 400
    assert sum(map(len, documents)) > 5_000_000
    root = Path(tokenize.__file__).parent
    position = {
        name: documents.index((root / name).read_text("utf-8")) for name in ("abc.py", "json/decoder.py", "zipapp.py")
    }
    assert list(position.values()) == sorted(position.values())
    assert not any("import test.support" in text for text in documents[:50])


def test_python_stdlib_skips_other_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a.py": b"a = 1\n",
        "b.py": b"# -*- coding: latin-1 -*-\nb = '\xe9'\n",
        "c.py": b"\xef\xbb\xbfc = 3\n",
        "d/test/e.py": b"e = 5\n",
        "d/f.py": b"# coding: utf-8\nf = 6\n",
        "site-packages/g.py": b"g = 7\n",
        "h.txt": b"h",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert full_text(PythonStdlibConfig(bom=Bom.strip)) == "a = 1\n\nc = 3\n\n# coding: utf-8\nf = 6\n"


GUTENBERG = (
    "\ufeffThe Project Gutenberg eBook\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK 100 ***\r\n\r\n\r\n"
    "THE SONNETS\r\n\r\nby William\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK 100 ***\r\n\r\nlicense\r\n"
)


def test_shakespeare_has_no_header_and_footer(tmp_path: Path) -> None:
    path = tmp_path / "pg100.txt"
    path.write_bytes(GUTENBERG.encode())
    config = make_config("dataset=shakespeare", f"dataset.path={path}").dataset
    assert isinstance(config, DownloadConfig)
    assert (config.sha256, config.newlines) == (None, Newlines.normalize)
    assert full_text(config) == "THE SONNETS\n\nby William\n"
    path.write_text("THE SONNETS")
    with pytest.raises(DataError, match=r"no lines [\s\S]* of Project Gutenberg"):
        full_text(config)


def jsonl(path: Path, *lines: object) -> JsonlConfig:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return JsonlConfig(path=str(path))


def test_jsonl_reads_one_field_per_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"tale {n}\nof é", "n": n} for n in range(30)]
    config = jsonl(tmp_path / "tales.jsonl", *rows[:9], "", " ", *rows[9:])
    expected = "\n".join(f"tale {n}\nof é" for n in range(30))
    assert full_text(config) == expected
    assert corpus.load(config).n_documents == {"train": 30}
    monkeypatch.setattr(reading, "PART_BYTES", 50)
    assert full_text(config) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "cut', r"not JSON[\s\S]*tales.jsonl, line 3"),
        ("[1]", r"this is list, not an object[\s\S]*line 3"),
        ({"body": "b", "title": "t"}, r"no field 'text'[\s\S]*line 3[\s\S]*one of: body, title"),
        ({"text": 5, "title": "t"}, r"'text' holds int, not text[\s\S]*line 3[\s\S]*one of: title"),
        ('{"text": "half \\ud800"}', r"U\+D800 is half a character[\s\S]*document 2"),
    ],
)
def test_jsonl_names_bad_line(line: object, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = jsonl(tmp_path / "tales.jsonl", {"text": "good"}, "", line, {"text": "good"})
    for part_bytes in (2**21, 8):
        monkeypatch.setattr(reading, "PART_BYTES", part_bytes)
        with pytest.raises(DataError, match=expected):
            corpus.load(config)


def test_plugin_may_return_text_or_yield_documents() -> None:
    def one(config: DatasetConfig) -> str:
        return "a text"

    def many(config: DatasetConfig) -> Iterator[str]:
        yield from ("a", "", "b")

    for builder, expected in ((one, "a text"), (many, "a\nb")):
        DATASETS.register(f"test_{builder.__name__}")(builder)
        try:
            assert full_text(DatasetConfig(name=f"test_{builder.__name__}")) == expected
        finally:
            del DATASETS._builders[f"test_{builder.__name__}"]


def test_huggingface_reads_local_parquet_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    rows = [{"text": f"row {n}", "n": n} for n in range(20)]
    (tmp_path / "json").mkdir()
    jsonl(tmp_path / "json" / "train.jsonl", *rows)
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "parquet" / "train.parquet")
    datasets.Dataset.from_list(rows[:3]).to_parquet(tmp_path / "parquet" / "validation.parquet")
    expected = "\n".join(f"row {n}" for n in range(20))
    for kind in ("json", "parquet"):
        config = HuggingFaceConfig(path=str(tmp_path / kind))
        assert full_text(config) == expected
        assert corpus.load(HuggingFaceConfig(path=config.path, max_documents=5)).n_documents == {"train": 5}
        with pytest.raises(DataError, match=r"no field 'body'[\s\S]*one of: text, n"):
            corpus.load(HuggingFaceConfig(path=config.path, field="body"))
    own = corpus.load(HuggingFaceConfig(path=str(tmp_path / "parquet"), val_split="validation"))
    assert own.n_documents == {"train": 20, "val": 3}
    with pytest.raises(DataError, match="cannot be read"):
        corpus.load(HuggingFaceConfig(path=str(tmp_path / "parquet"), train_split="nothing"))
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*dataset.path="):
        corpus.load(HuggingFaceConfig(path=str(tmp_path / "nowhere")))


def test_huggingface_refuses_files_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    folder = tmp_path / "data"
    (folder / "R").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "a row"}\n' * 3)
    assert corpus.load(HuggingFaceConfig(path=str(folder))).n_documents == {"train": 3}
    (folder / "R" / "metrics.jsonl").write_text('{"text": "a row"}\n')
    (folder / "R" / "config.yaml").touch()
    with pytest.raises(DataError, match="files of a run directory"):
        corpus.load(HuggingFaceConfig(path=str(folder)))


def test_huggingface_names_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'datasets>="):
        corpus.load(HuggingFaceConfig(path="wikitext"))


def test_download_verifies_local_copy(shakespeare: Path, tmp_path: Path) -> None:
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    train, val = train_and_val(DownloadConfig(url="", sha256=sha256, path=str(shakespeare)))
    assert (len(train), len(val)) == (1_003_854, 111_540)
    (tmp_path / "other.txt").write_text("First Citizen:")
    with pytest.raises(DataError, match=r"14 bytes with\s+sha256"):
        corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / "other.txt")))
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    for name in ("loop.txt", "x" * 300, "."):
        with pytest.raises(DataError, match=r"there is no file|this cannot be read: File name too long"):
            corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / name)))
    with pytest.raises(DataError, match="there is no file"):
        corpus.load(DownloadConfig(url="", sha256=sha256, path=str(tmp_path / "none.txt")))
