"""Texts that travel to machines which do not have them."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanolm.config.dataset import DownloadConfig, HuggingFaceConfig, TextConfig
from nanolm.data.corpus.paths import find_files
from nanolm.errors import DataError
from nanolm.sweeps.launchers.ray import texts
from nanolm.sweeps.launchers.ray.texts import Text, find_text, path_settings, place, read_chunks


def placed_elsewhere(text: Text, folder: Path, chunks: list[bytes] | None) -> str:
    """Place a text as on a machine without its files."""
    moved = {path: path.with_name(f"{path.name}.hidden") for path in {file.path for file in text.files}}
    for path, hidden in moved.items():
        path.rename(hidden)
    try:
        return place(text, chunks, folder)
    finally:
        for path, hidden in moved.items():
            hidden.rename(path)


def contents(value: str) -> list[bytes]:
    return [path.read_bytes() for path in find_files(value).files]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    files=st.dictionaries(
        st.lists(st.sampled_from(["a", "b", "ä ö", "c.txt", "[d]"]), min_size=1, max_size=3).map("/".join),
        st.binary(max_size=40),
        min_size=1,
    ),
    size=st.integers(1, 30),
    pattern=st.sampled_from(["", "**/*", "*", "**/c.txt"]),
)
def test_placed_text_has_the_same_files_in_the_same_order(files: dict[str, bytes], size: int, pattern: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "texts")
        for name, content in files.items():
            path = root / name
            if not any(parent.is_file() for parent in path.parents) and not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        value = str(root / pattern)
        text = find_text(value)
        if text is None:
            return
        joined = b"".join(read_chunks(text))
        chunks = [joined[at : at + size] for at in range(0, len(joined), size)]
        copy = placed_elsewhere(text, Path(folder, "copy"), chunks)
        assert copy.startswith(str(Path(folder, "copy")))
        assert contents(copy) == contents(value)


def test_text_that_is_here_is_used_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    text = find_text("a.txt")
    assert text is not None
    assert place(text, None, tmp_path / "copy") == str(tmp_path / "a.txt")
    assert not (tmp_path / "copy").exists()


def test_another_text_of_the_same_name_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("words")
    text = find_text(str(path))
    assert text is not None
    path.write_text("other")
    copy = place(text, [b"wo", b"rds"], tmp_path / "copy")
    assert Path(copy).read_text() == "words"
    with pytest.raises(DataError, match=r"a\.txt changed on its way"):
        place(text, [b"other"], tmp_path / "second")


def test_large_text_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("words")
    monkeypatch.setattr(texts, "MAX_BYTES", 4)
    text = find_text(str(tmp_path))
    assert text is not None
    assert not text.is_small
    with pytest.raises(DataError, match=r"does not have the text, whose 5\.0 B are more than the 4\.0 B") as caught:
        placed_elsewhere(text, tmp_path.parent / "copy", None)
    assert str(tmp_path) in caught.value.hint


def test_path_settings_of_datasets(tmp_path: Path) -> None:
    assert path_settings(TextConfig(path="a", val_path="b")) == {"path": "a", "val_path": "b"}
    assert path_settings(DownloadConfig(url="http://x", sha256=None)) == {}
    assert path_settings(HuggingFaceConfig(path="wikitext")) == {"path": "wikitext"}
    assert find_text(str(tmp_path / "wikitext")) is None
