import bz2
import gzip
import io
import json
import lzma
import pickle
import shlex
import sqlite3
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from nanolm.config.dataset import JsonlConfig, TextConfig
from nanolm.data import corpus
from nanolm.data.corpus.formats import recognise
from nanolm.errors import DataError

TEXT = "The quick brown fox; zwölf Boxkämpfer jagen Viktor.\n" * 30


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, TEXT)
    return content.getvalue()


def tarred(mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("a.txt"))
    return content.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (a text)")
        return connection.serialize()


SAFETENSORS = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()

FILES = {
    "UTF-16 text, iconv -f utf-16 ": TEXT.encode("utf-16"),
    "UTF-16 text, iconv -f utf-16": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "UTF-32 text, iconv -f utf-32 ": TEXT.encode("utf-32"),
    "UTF-16 text without a byte order mark, iconv -f utf-16le": TEXT.encode("utf-16-le"),
    "UTF-16 text without a byte order mark, iconv -f utf-16be": TEXT.encode("utf-16-be"),
    "UTF-16 text without a byte order mark, utf-16le": "Съешь же ещё этих мягких булок.\n".encode("utf-16-le") * 9,
    "UTF-32 text without a byte order mark, utf-32le": TEXT.encode("utf-32-le"),
    "perhaps Latin-1, iconv -f latin1": TEXT.encode("latin1"),
    "perhaps Windows-1252, iconv -f windows-1252": ("“" + TEXT).encode("cp1252"),
    "damaged bytes, iconv -c -f utf-8": TEXT.encode() + b"\xff" + TEXT.encode(),
    "UTF-8 with damaged bytes, iconv -c -f utf-8": b"The quick brown fox in a caf\xc3",
    "gzip-compressed, gunzip -c": gzip.compress(TEXT.encode()),
    "bzip2-compressed, bunzip2 -c": bz2.compress(TEXT.encode()),
    "xz-compressed, xz -dc": lzma.compress(TEXT.encode()),
    "zstd-compressed, zstd -dc": b"\x28\xb5\x2f\xfd\x24\x00\x01\x00\x00\x99\xe9\xd8\x51",
    "a tar archive, tar -xf": tarred(),
    "a tar archive, gzip-compressed, tar -xf": tarred("w:gz"),
    "a zip archive, unzip": zipped("a.txt") + b"\xff",
    "a Word document, pandoc": zipped("[Content_Types].xml", "word/document.xml") + b"\xff",
    "an EPUB e-book, pandoc": zipped("mimetype", "META-INF/container.xml") + b"\xff",
    "a PyTorch checkpoint, not text": zipped("archive/data.pkl", "archive/data/0") + b"\xff",
    "a Python pickle, not text": pickle.dumps({"weight": b"\xff" * 9}, protocol=2),
    "a safetensors checkpoint, not text": len(SAFETENSORS).to_bytes(8, "little") + SAFETENSORS + b"\0\0\x80\x3f",
    "a PDF document, pdftotext": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    "a PNG image, not text": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a program or library (ELF), not text": b"\x7fELF\x02\x01\x01" + b"\0" * 60,
    "a SQLite database, sqlite3": database(),
    "a Parquet file, dataset=huggingface": b"PAR1\x15\x04\x15\xff\xff",
    "binary data, not text": bytes(range(256)) * 4,
    "text with NULs, tr -d": b"some words" + b"\0" * 30 + b"and others",
}


@pytest.mark.parametrize("expected", FILES)
def test_recognise_names_format_and_hint(expected: str, tmp_path: Path) -> None:
    (tmp_path / "my books").mkdir()
    path = tmp_path / "my books" / "tom's.txt"
    path.write_bytes(FILES[expected])
    with pytest.raises(DataError) as caught:
        corpus.load(TextConfig(path=str(path)))
    *kinds, hint = expected.split(", ")
    assert all(kind in caught.value.found for kind in kinds), caught.value
    assert hint in caught.value.hint
    if hint not in ("not text", "dataset=huggingface"):
        assert shlex.quote(str(path)) in caught.value.hint
    with pytest.raises(DataError):
        corpus.load(JsonlConfig(path=str(path)))


@pytest.mark.parametrize("name", ["book", "book.txt", "book.txt.gz"])
@pytest.mark.parametrize("encode", [lambda text: text.encode("utf-16"), lambda text: gzip.compress(text.encode())])
def test_recognise_hint_command_converts_file(name: str, encode, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a b" / name
    path.parent.mkdir()
    path.write_bytes(encode(TEXT))
    command = recognise(path).hint.partition(": ")[2]
    subprocess.run(command, shell=True, check=True)
    (made,) = set(path.parent.iterdir()) - {path}
    assert made.read_text(encoding="utf-8") == TEXT


def test_recognise_truncated_archive(tmp_path: Path) -> None:
    path = tmp_path / "cut.docx"
    path.write_bytes(zipped("word/document.xml")[:50] + b"\xff")
    assert recognise(path).name == "a zip archive"
    path.write_bytes(gzip.compress(TEXT.encode())[:12])
    assert recognise(path).name == "gzip-compressed"
