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
    PythonStdlibConfig,
)
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.data.corpus.loading import read_documents
from nanolm.errors import DataError
from nanolm.registry import DATASETS
from tests.helpers import make_config


def whole(config: DatasetConfig) -> str:
    loaded = corpus.load(config)
    return "".join(piece.text for piece in loaded.pieces())


def test_the_standard_library_has_no_tests_and_is_in_the_order_of_its_paths() -> None:
    documents = [part.text for part in read_documents(PythonStdlibConfig())]
    assert len(documents) > 400
    assert sum(map(len, documents)) > 5_000_000
    root = Path(tokenize.__file__).parent
    position = {
        name: documents.index((root / name).read_text("utf-8")) for name in ("abc.py", "json/decoder.py", "zipapp.py")
    }
    assert list(position.values()) == sorted(position.values())
    assert not any("import test.support" in text for text in documents[:50])


def test_what_is_not_utf8_by_its_cookie_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert whole(PythonStdlibConfig(bom=Bom.strip)) == "a = 1\n\nc = 3\n\n# coding: utf-8\nf = 6\n"


GUTENBERG = (
    "\ufeffThe Project Gutenberg eBook\r\n\r\n*** START OF THE PROJECT GUTENBERG EBOOK 100 ***\r\n\r\n\r\n"
    "THE SONNETS\r\n\r\nby William\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK 100 ***\r\n\r\nlicense\r\n"
)


def test_shakespeare_has_neither_header_nor_footer(tmp_path: Path) -> None:
    path = tmp_path / "pg100.txt"
    path.write_bytes(GUTENBERG.encode())
    config = make_config("dataset=shakespeare", f"dataset.path={path}").dataset
    assert isinstance(config, DownloadConfig)
    assert (config.sha256, config.newlines) == (None, Newlines.normalize)
    assert whole(config) == "THE SONNETS\n\nby William\n"
    path.write_text("THE SONNETS")
    with pytest.raises(DataError, match=r"no lines [\s\S]* as Project Gutenberg sets them"):
        whole(config)


def jsonl(path: Path, *lines: object) -> JsonlConfig:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return JsonlConfig(path=str(path))


def test_a_field_of_every_line_is_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": f"tale {n}\nof é", "n": n} for n in range(30)]
    config = jsonl(tmp_path / "tales.jsonl", *rows[:9], "", " ", *rows[9:])
    expected = "\n".join(f"tale {n}\nof é" for n in range(30))
    assert whole(config) == expected
    assert corpus.load(config).n_documents == {"train": 30}
    monkeypatch.setattr(reading, "PART_BYTES", 50)
    assert whole(config) == expected


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
def test_a_bad_line_is_named(line: object, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = jsonl(tmp_path / "tales.jsonl", {"text": "good"}, "", line, {"text": "good"})
    for part_bytes in (2**21, 8):
        monkeypatch.setattr(reading, "PART_BYTES", part_bytes)
        with pytest.raises(DataError, match=expected):
            corpus.load(config)


def test_a_plugin_may_return_one_text_or_yield_documents() -> None:
    def one(config: DatasetConfig) -> str:
        return "a text"

    def many(config: DatasetConfig) -> Iterator[str]:
        yield from ("a", "", "b")

    for builder, expected in ((one, "a text"), (many, "a\nb")):
        DATASETS.register(f"test_{builder.__name__}")(builder)
        try:
            assert whole(DatasetConfig(name=f"test_{builder.__name__}")) == expected
        finally:
            del DATASETS._builders[f"test_{builder.__name__}"]


def test_huggingface_reads_local_folders_of_parquet_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert whole(config) == expected
        assert corpus.load(HuggingFaceConfig(path=config.path, max_documents=5)).n_documents == {"train": 5}
        with pytest.raises(DataError, match=r"no field 'body'[\s\S]*one of: text, n"):
            corpus.load(HuggingFaceConfig(path=config.path, field="body"))
    own = corpus.load(HuggingFaceConfig(path=str(tmp_path / "parquet"), val_split="validation"))
    assert own.n_documents == {"train": 20, "val": 3}
    with pytest.raises(DataError, match="cannot be read"):
        corpus.load(HuggingFaceConfig(path=str(tmp_path / "parquet"), train_split="nothing"))
    with pytest.raises(DataError, match=r"cannot be read[\s\S]*dataset.path="):
        corpus.load(HuggingFaceConfig(path=str(tmp_path / "nowhere")))


def test_huggingface_refuses_the_files_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_huggingface_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'datasets>="):
        corpus.load(HuggingFaceConfig(path="wikitext"))
