import json
from pathlib import Path

import pytest

from nanolm.config.dataset import JsonlConfig, Nul, PythonDocsConfig, TextConfig
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.errors import DataError
from tests.helpers import Nanolm


def text_of(config: TextConfig | JsonlConfig) -> str:
    return "".join(piece.text for piece in corpus.load(config).pieces())


def test_nul_heavy_text_is_refused_unless_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    few, many = "a" * 300 + "\0" * 3, "a" * 300 + "\0" * 4
    path.write_text(few)
    assert text_of(TextConfig(path=str(path))) == few
    path.write_text(many)
    assert text_of(TextConfig(path=str(path), nul=Nul.allow)) == many
    with pytest.raises(DataError, match=r"4 of 304 characters are NUL[\s\S]*dataset\.nul=allow"):
        corpus.load(TextConfig(path=str(path)))
    path.write_text("a" * 396 + "\0" * 4)
    assert len(text_of(TextConfig(path=str(path)))) == 400
    # A hole in a long file is found in the part that it lies in.
    path.write_text("a line\n" * 2000 + "\0" * 20 + "a line\n" * 2000)
    assert "\0" in text_of(TextConfig(path=str(path)))
    monkeypatch.setattr(reading, "PART_BYTES", 500)
    with pytest.raises(DataError, match="are NUL"):
        corpus.load(TextConfig(path=str(path)))


def test_nul_heavy_documents_of_a_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "t\0h\0e\0 \0e\0n\0d\0"}))
    with pytest.raises(DataError, match=r"7 of 14 characters are NUL[\s\S]*begins 't"):
        corpus.load(JsonlConfig(path=str(path)))
    assert len(text_of(JsonlConfig(path=str(path), nul=Nul.allow))) == 14


def test_what_is_left_out_is_noted_for_every_split(tmp_path: Path) -> None:
    for name in ("train/a.txt", "val/b.txt"):
        for path in (tmp_path / name, tmp_path / name.split("/")[0] / "R" / "samples.txt"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            (path.parent / "config.yaml").touch()
    for run in tmp_path.glob("*/R"):
        (run / "metrics.jsonl").write_text('{"text": "a row"}\n')
    config = TextConfig(path=f"{tmp_path}/train/**/*.txt", val_path=f"{tmp_path}/val/**/*.txt")
    loaded = corpus.load(config)
    assert "".join(piece.text for piece in loaded.pieces()) == "train/a.txtval/b.txt"
    assert loaded.notes == tuple(
        f"left out of dataset.{setting}: 1 run directory ({tmp_path / folder / 'R'})"
        for setting, folder in (("path", "train"), ("val_path", "val"))
    )
    with pytest.raises(DataError, match=r"no text in .* besides what is left out[\s\S]*dataset\.val_path"):
        corpus.load(JsonlConfig(path=f"{tmp_path}/train/a.txt", val_path=f"{tmp_path}/**/*.jsonl"))
    assert corpus.load(PythonDocsConfig()).notes == ()


def test_files_of_several_splits_are_noted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "val.txt").symlink_to("b.txt")
    loaded = corpus.load(TextConfig(path=f"{tmp_path}/[abc].txt", val_path=f"{tmp_path}/val.txt"))
    assert loaded.notes == (
        f"warning: train and val read the same files, so that their losses do not compare: {tmp_path / 'b.txt'}",
    )


def test_the_hint_for_a_folder_leaves_other_files_out(tmp_path: Path) -> None:
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
    assert text_of(TextConfig(path=glob)) == "text"


def test_a_second_run_in_the_same_folder_reads_the_same_text(nanolm: Nanolm) -> None:
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
    assert log.count("left out of dataset.path: 1 run directory (R)") == 1
    assert (nanolm.folder / "R" / "samples.txt").exists()
    shown = nanolm("data", "prepare", *line[:1], "dataset.path=.", "size.context_length=8")
    assert shown.returncode == 0, shown.stderr
    for words in ("2 run directories (R, S)", "1 cache folder (cache)"):
        assert shown.stderr.count(words) == 1
