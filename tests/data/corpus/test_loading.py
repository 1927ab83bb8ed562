import json
from pathlib import Path

import pytest

from nanolm.config.dataset import (
    Bom,
    JsonlConfig,
    Newlines,
    Nul,
    PythonDocsConfig,
    TextConfig,
)
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.errors import DataError
from tests.helpers import Nanolm, full_text, train_and_val


def test_load_fingerprint_depends_on_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_load_keeps_or_normalizes_line_ends_and_bom(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n\xef\xbb\xbf\0")
    kept = TextConfig(path=str(tmp_path / "a.txt"))
    assert "".join(train_and_val(kept)) == "\ufeffa\r\nb\rc\n\ufeff\0"
    normalized = TextConfig(path=kept.path, newlines=Newlines.normalize, bom=Bom.strip)
    assert "".join(train_and_val(normalized)) == "a\nb\nc\n\ufeff\0"


def test_load_names_missing_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files"):
        corpus.load(TextConfig(path=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="no file or folder matching"):
        corpus.load(TextConfig(path=str(tmp_path / "*.nothing")))


def test_load_skips_empty_documents_and_keeps_nul(tmp_path: Path) -> None:
    for name, text in {"a": "A\0A", "b": "", "c": "\n", "d": "D"}.items():
        (tmp_path / name).write_text(text)
    loaded = corpus.load(TextConfig(path=str(tmp_path)))
    assert "".join(train_and_val(loaded.config)) == "A\0A\n\n\nD"
    assert loaded.n_documents == {"train": 3}


def test_pieces_refuse_changed_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text")
    loaded = corpus.load(TextConfig(path=str(tmp_path / "a.txt")))
    (tmp_path / "a.txt").write_text("two text")
    with pytest.raises(DataError, match="changed while it was being read"):
        list(loaded.documents("train"))


def test_load_refuses_nul_heavy_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "t\0h\0e\0 \0e\0n\0d\0"}))
    with pytest.raises(DataError, match=r"7 of 14 characters are NUL[\s\S]*begins with 't"):
        corpus.load(JsonlConfig(path=str(path)))
    assert len(full_text(JsonlConfig(path=str(path), nul=Nul.allow))) == 14


def test_load_notes_skipped_folders_of_every_split(tmp_path: Path) -> None:
    for name in ("train/a.txt", "val/b.txt"):
        for path in (tmp_path / name, tmp_path / name.split("/")[0] / "R" / "samples.jsonl"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            (path.parent / "config.yaml").touch()
    for run in tmp_path.glob("*/R"):
        (run / "metrics.jsonl").write_text('{"text": "a row"}\n')
    config = TextConfig(path=f"{tmp_path}/train/**/*.txt", val_path=f"{tmp_path}/val/**/*.txt")
    loaded = corpus.load(config)
    assert "".join(piece.text for piece in loaded.pieces()) == "train/a.txtval/b.txt"
    assert loaded.notes == tuple(
        f"skipped below dataset.{setting}: 1 run directory ({tmp_path / folder / 'R'})"
        for setting, folder in (("path", "train"), ("val_path", "val"))
    )
    with pytest.raises(DataError, match=r"everything in .* is skipped[\s\S]*dataset\.val_path"):
        corpus.load(JsonlConfig(path=f"{tmp_path}/train/a.txt", val_path=f"{tmp_path}/**/*.jsonl"))
    assert corpus.load(PythonDocsConfig()).notes == ()


def test_load_notes_files_of_several_splits(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "val.txt").symlink_to("b.txt")
    loaded = corpus.load(TextConfig(path=f"{tmp_path}/[abc].txt", val_path=f"{tmp_path}/val.txt"))
    assert loaded.notes == (
        f"warning: train and val read the same files, so their losses are not comparable: {tmp_path / 'b.txt'}",
    )


def test_second_run_in_same_folder_reads_same_text(nanolm: Nanolm) -> None:
    (nanolm.folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    nanolm.environment["NANOLM_CACHE"] = "cache"
    line = ("dataset=text", "dataset.path=**/*.txt", "model=bigram", "trainer.max_steps=2", "logger=none")
    texts = []
    for run in ("R", "S"):
        done = nanolm("train", *line, f"hydra.run.dir={run}")
        assert done.returncode == 0, done.stderr
        texts.append(json.loads((nanolm.folder / run / "summary.json").read_text())["corpus"])
    assert texts[0] == texts[1]
    log = (nanolm.folder / "S" / "train.log").read_text()
    assert log.count("skipped below dataset.path: 1 run directory (R)") == 1
    assert (nanolm.folder / "R" / "samples.jsonl").exists()
    shown = nanolm("data", "prepare", *line[:1], "dataset.path=.", "size.context_length=8")
    assert shown.returncode == 0, shown.stderr
    for words in ("2 run directories (R, S)", "1 cache folder (cache)"):
        assert shown.stderr.count(words) == 1
