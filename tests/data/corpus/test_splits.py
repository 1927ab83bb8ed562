from pathlib import Path

import pytest

from nanolm.config.dataset import (
    SplitBy,
    TextConfig,
)
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.errors import DataError
from tests.helpers import train_and_val


def joined(loaded: corpus.Corpus) -> dict[str, str]:
    return {name: "".join(loaded.documents(name)) for name in loaded.splits}


def test_val_split_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    assert train_and_val(TextConfig(path=str(tmp_path / "a.txt"), val_fraction=0.2)) == ("abcdefgh", "ij")


def test_test_split_is_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    loaded = corpus.load(TextConfig(path=str(tmp_path / "a.txt"), val_fraction=0.2, test_fraction=0.3))
    assert joined(loaded) == {"train": "abcde", "val": "fg", "test": "hij"}


def test_split_by_document_holds_out_documents(tmp_path: Path) -> None:
    documents = [f"{n} begins\n{n} ends" for n in range(40)]
    for n, text in enumerate(documents):
        (tmp_path / f"{n:02d}").write_text(text)
    config = TextConfig(path=str(tmp_path), split_by=SplitBy.document, val_fraction=0.2, test_fraction=0.1)
    loaded = corpus.load(config)
    found = {name: list(loaded.documents(name)) for name in loaded.splits}
    assert {name: len(texts) for name, texts in found.items()} == {"train": 28, "val": 8, "test": 4}
    assert sorted(text.removesuffix("\n") for texts in found.values() for text in texts) == sorted(documents)
    assert all(texts == sorted(texts, key=lambda text: int(text.split()[0])) for texts in found.values())
    config.split_seed = 1
    assert list(corpus.load(config).documents("val")) != found["val"]


def test_split_by_line_holds_out_random_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"line {n}\n" for n in range(499)] + ["last"]
    (tmp_path / "a.txt").write_text("".join(lines))
    config = TextConfig(path=str(tmp_path / "a.txt"), split_by=SplitBy.line)
    texts = joined(corpus.load(config))
    assert len(texts["val"].splitlines()) == 50
    assert sorted(line for text in texts.values() for line in text.splitlines(True)) == sorted(lines)
    assert texts["val"] not in "".join(lines)
    monkeypatch.setattr(reading, "PART_BYTES", 100)
    assert joined(corpus.load(config)) == texts


def test_val_and_test_may_have_separate_files(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / name).write_text(f"text of {name}")
    paths = {f"{name}_path": str(tmp_path / name) for name in ("val", "test")}
    both = corpus.load(TextConfig(path=str(tmp_path / "train"), **paths))
    assert joined(both) == {name: f"text of {name}" for name in ("train", "val", "test")}
    only_test = corpus.load(TextConfig(path=str(tmp_path / "train"), test_path=paths["test_path"], val_fraction=0.5))
    assert joined(only_test) == {"train": "text o", "val": "f train", "test": "text of test"}
    assert both.fingerprint != only_test.fingerprint


def test_split_refuses_too_few_documents(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document\nof two lines")
    with pytest.raises(DataError, match=r"has 1 documents, and the splits train, val need at least 2"):
        corpus.load(TextConfig(path=str(tmp_path / "a.txt"), split_by=SplitBy.document))
    with pytest.raises(DataError, match=r"has 2 lines, and the splits train, val, test need at least 3"):
        corpus.load(TextConfig(path=str(tmp_path / "a.txt"), split_by=SplitBy.line, test_fraction=0.1))
