import random
from pathlib import Path

import pytest

from nanolm.config.dataset import (
    Nul,
    TextConfig,
)
from nanolm.data import corpus
from nanolm.data.corpus import reading
from nanolm.errors import DataError
from tests.helpers import full_text, train_and_val


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "empty"), (b" \n\t", "empty"), (b"abc\xffdef", r"byte 3 \(0xff\) is not UTF-8[\s\S]*byte offset 3")],
)
def test_read_utf8_names_bad_file(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        corpus.load(TextConfig(path=str(path)))
    assert "bad.txt" in str(caught.value)


def test_read_utf8_cuts_long_file_after_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 64)
    drawn = random.Random(0)
    text = "".join(drawn.choice("aé€𝄞\n\r \0") for _ in range(5000)) + "x" * 300 + "\nend"
    (tmp_path / "a.txt").write_bytes(text.encode())
    parts = list(corpus.read_utf8(tmp_path / "a.txt", allow_nul=True))
    assert "".join(part.text for part in parts) == text
    assert len(parts) > 50
    assert all(part.text.endswith("\n") for part in parts[:-1])
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]
    train, val = train_and_val(TextConfig(path=str(tmp_path / "a.txt"), val_fraction=0.3, nul=Nul.allow))
    assert (train, val) == (text[: int(len(text) * 0.7)], text[int(len(text) * 0.7) :])


@pytest.mark.parametrize("at", [0, 1, 62, 63, 64, 65, 127, 128, 200])
def test_read_utf8_offset_counts_from_start_of_file(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PART_BYTES", 64)
    # Two-byte characters precede the bad byte, so that block ends cut characters.
    content = b"a" * (at % 2) + "é".encode() * (at // 2) + b"\xff" + b"abc\n" * 40
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"byte {at} \(0xff\) is not UTF-8[\s\S]*byte offset {at}\b"):
        corpus.load(TextConfig(path=str(tmp_path / "bad.txt")))
    (tmp_path / "cut.txt").write_bytes(b"a" * at + "é".encode()[:1])
    with pytest.raises(DataError, match=rf"byte {at} \(0xc3\)"):
        corpus.load(TextConfig(path=str(tmp_path / "cut.txt")))


def test_read_utf8_refuses_nul_heavy_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    few, many = "a" * 300 + "\0" * 3, "a" * 300 + "\0" * 4
    path.write_text(few)
    assert full_text(TextConfig(path=str(path))) == few
    path.write_text(many)
    assert full_text(TextConfig(path=str(path), nul=Nul.allow)) == many
    with pytest.raises(DataError, match=r"4 of 304 characters are NUL[\s\S]*dataset\.nul=allow"):
        corpus.load(TextConfig(path=str(path)))
    path.write_text("a" * 396 + "\0" * 4)
    assert len(full_text(TextConfig(path=str(path)))) == 400
    # Blocks of a long file are checked one by one.
    path.write_text("a line\n" * 2000 + "\0" * 20 + "a line\n" * 2000)
    assert "\0" in full_text(TextConfig(path=str(path)))
    monkeypatch.setattr(reading, "PART_BYTES", 500)
    with pytest.raises(DataError, match="are NUL"):
        corpus.load(TextConfig(path=str(path)))
