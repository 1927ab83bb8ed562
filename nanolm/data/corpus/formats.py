"""Detection of file formats other than UTF-8 text, with a hint at how to convert each of them."""

from __future__ import annotations

import codecs
import shlex
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

# Bytes at the start of a file that are examined.
HEAD_BYTES = 2**16
# Bytes examined on each side of an invalid byte, to distinguish damaged UTF-8 from another encoding.
AROUND_BYTES = 2**18


class Format(NamedTuple):
    """A file format.

    Attributes:
        name: with an article, as in "a PDF document".
        hint: what to do; {file}, {text} and {folder} are replaced by the file, a path for its text, and its folder, all
            quoted for a shell.
    """

    name: str
    hint: str


_NOT_TEXT = "it is not text: move it elsewhere, or choose a glob without it"
_ICONV = "convert it: iconv -f {encoding} -t utf-8 {{file}} > {{text}}"
_PANDOC = "save it as plain text (UTF-8), for example: pandoc -t plain {file} -o {text}"
_TABLE = "read a folder of such files with: dataset=huggingface dataset.path={folder}"
_SPREADSHEET = "export its text as a UTF-8 file"
_TAR = "unpack it and name the text files in it: tar -xf {file}"

UTF_16 = Format("UTF-16 text", _ICONV.format(encoding="utf-16"))
UTF_32 = Format("UTF-32 text", _ICONV.format(encoding="utf-32"))
ZIP = Format("a zip archive", "unpack it and name the text files in it: unzip {file}")

# (offset, bytes at the offset, format); the first match counts.
MAGIC = (
    (0, b"\xff\xfe\0\0", UTF_32),
    (0, b"\0\0\xfe\xff", UTF_32),
    (0, b"\xff\xfe", UTF_16),
    (0, b"\xfe\xff", UTF_16),
    (0, b"\x1f\x8b", Format("gzip-compressed", "decompress it: gunzip -c {file} > {text}")),
    (0, b"BZh", Format("bzip2-compressed", "decompress it: bunzip2 -c {file} > {text}")),
    (0, b"\xfd7zXZ\0", Format("xz-compressed", "decompress it: xz -dc {file} > {text}")),
    (0, b"\x28\xb5\x2f\xfd", Format("zstd-compressed", "decompress it: zstd -dc {file} > {text}")),
    (0, b"\x04\x22\x4d\x18", Format("lz4-compressed", "decompress it: lz4 -dc {file} > {text}")),
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", "unpack it and name the text files in it: 7z x {file}")),
    (0, b"Rar!\x1a\x07", Format("a RAR archive", "unpack it and name the text files in it: unrar x {file}")),
    (257, b"ustar", Format("a tar archive", _TAR)),
    (0, b"%PDF-", Format("a PDF document", "extract its text: pdftotext -enc UTF-8 {file} {text}")),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Format("an old Microsoft Office document", _PANDOC)),
    (60, b"BOOKMOBI", Format("a Mobipocket e-book", "convert it with Calibre: ebook-convert {file} {text}")),
    (0, b"\x89PNG\r\n\x1a\n", Format("a PNG image", _NOT_TEXT)),
    (0, b"\xff\xd8\xff", Format("a JPEG image", _NOT_TEXT)),
    (0, b"GIF8", Format("a GIF image", _NOT_TEXT)),
    (0, b"II*\0", Format("a TIFF image", _NOT_TEXT)),
    (0, b"MM\0*", Format("a TIFF image", _NOT_TEXT)),
    (8, b"WEBP", Format("a WebP image", _NOT_TEXT)),
    (8, b"WAVE", Format("a WAV recording", _NOT_TEXT)),
    (0, b"ID3", Format("an MP3 recording", _NOT_TEXT)),
    (0, b"OggS", Format("an Ogg recording", _NOT_TEXT)),
    (0, b"fLaC", Format("a FLAC recording", _NOT_TEXT)),
    (4, b"ftyp", Format("an MP4 video", _NOT_TEXT)),
    (0, b"\x7fELF", Format("a program or library (ELF)", _NOT_TEXT)),
    (0, b"MZ", Format("a Windows program or library", _NOT_TEXT)),
    (0, b"\xcf\xfa\xed\xfe", Format("a program or library (Mach-O)", _NOT_TEXT)),
    (0, b"\xca\xfe\xba\xbe", Format("a program or library (Java or Mach-O)", _NOT_TEXT)),
    (0, b"\0asm", Format("a WebAssembly module", _NOT_TEXT)),
    (0, b"SQLite format 3\0", Format("a SQLite database", "export its text: sqlite3 {file} 'SELECT ...' > {text}")),
    (0, b"PAR1", Format("a Parquet file", _TABLE)),
    (0, b"ARROW1", Format("an Arrow file", _TABLE)),
    (0, b"\x89HDF\r\n\x1a\n", Format("an HDF5 file", _NOT_TEXT)),
    (0, b"\x93NUMPY", Format("a NumPy array", _NOT_TEXT)),
    (0, b"GGUF", Format("a GGUF model", _NOT_TEXT)),
    # Protocols 2 to 5.
    *((0, bytes([0x80, n]), Format("a Python pickle, such as a PyTorch checkpoint", _NOT_TEXT)) for n in range(2, 6)),
)

# A zip archive has one of these formats if a name in it has the ending.
ZIP_KINDS = (
    ("word/document.xml", Format("a Word document (docx)", _PANDOC)),
    ("xl/workbook.xml", Format("an Excel workbook (xlsx)", _SPREADSHEET)),
    ("ppt/presentation.xml", Format("a PowerPoint presentation (pptx)", _SPREADSHEET)),
    ("META-INF/container.xml", Format("an EPUB e-book", _PANDOC)),
    ("META-INF/manifest.xml", Format("an OpenDocument file (odt, ods, odp)", _PANDOC)),
    ("data.pkl", Format("a PyTorch checkpoint", _NOT_TEXT)),
    (".npy", Format("NumPy arrays (npz)", _NOT_TEXT)),
    ("META-INF/MANIFEST.MF", Format("a Java archive", _NOT_TEXT)),
)

UNMARKED = {
    encoding: Format(f"{encoding[:6].upper()} text without a byte order mark", _ICONV.format(encoding=encoding))
    for encoding in ("utf-32le", "utf-32be", "utf-16le", "utf-16be")
}
BINARY = Format("binary data", _NOT_TEXT)
WITH_NULS = Format("binary data, or text with NULs in it", "if it is text, drop them: tr -d '\\000' < {file} > {text}")
DAMAGED = Format("UTF-8 with damaged bytes", "repair it, or drop the bytes: iconv -c -f utf-8 -t utf-8 {file} > {text}")
# Bytes that occur in text of an 8-bit encoding: all but most control characters.
_NO_CONTROLS = bytes({*range(32, 256), *b"\t\n\v\f\r\x1a\x1b"})
_EIGHT_BITS = _ICONV + ", if that is its encoding; `iconv -l` lists others"
LATIN_1 = Format("text in another encoding, perhaps Latin-1", _EIGHT_BITS.format(encoding="latin1"))
WINDOWS_1252 = Format("text in another encoding, perhaps Windows-1252", _EIGHT_BITS.format(encoding="windows-1252"))


def recognise(path: Path, at: int = 0, *, is_utf8: bool = False) -> Format:
    """Recognise the format of a file that is not UTF-8 text.

    Args:
        at: offset of the first byte that is not UTF-8.
        is_utf8: whether the bytes are UTF-8, but not text.

    Returns:
        The format, with the paths of this file in the hint.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            start = max(0, at - AROUND_BYTES)
            file.seek(start)
            around = file.read(2 * AROUND_BYTES)
        found = _match_magic(path, head) or _match_unmarked(head) or (WITH_NULS if is_utf8 else _classify_bytes(around))
    except OSError:
        found = BINARY
    names = {"file": path, "text": _text_path(path), "folder": path.parent}
    return found._replace(hint=found.hint.format(**{key: shlex.quote(str(name)) for key, name in names.items()}))


def _match_magic(path: Path, head: bytes) -> Format | None:
    found = next((kind for offset, magic, kind in MAGIC if head[offset : offset + len(magic)] == magic), None)
    if found is ZIP:
        return _in_zip(path)
    if found is not None and found.name.endswith("-compressed") and _is_tar(path):
        return Format(f"a tar archive, {found.name}", _TAR)
    if found is None and _is_safetensors(path, head):
        return Format("a safetensors checkpoint", _NOT_TEXT)
    return found


def _in_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return ZIP
    return next((kind for ending, kind in ZIP_KINDS if any(name.endswith(ending) for name in names)), ZIP)


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except EOFError:
        # The compressed data is truncated.
        return False


def _is_safetensors(path: Path, head: bytes) -> bool:
    """Whether the file begins with the length of a JSON header, followed by that header."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _match_unmarked(head: bytes) -> Format | None:
    """Recognise UTF-16 or UTF-32 without a byte order mark by the positions of its NULs."""
    n_nul = head.count(0)
    if n_nul * 100 <= len(head):
        return None
    for encoding, kind in UNMARKED.items():
        try:
            # A truncated character at the end is not decoded.
            text = codecs.getincrementaldecoder(encoding)().decode(head)
        except UnicodeDecodeError:
            continue
        n_printable = sum(character.isprintable() or character.isspace() for character in text)
        # In the wrong byte order, a space is U+2000, and letters belong to scripts that are seldom mixed.
        high = 1 if encoding.endswith("le") else 0
        is_in_place = "32" in encoding or head[high::2].count(0) >= 0.8 * n_nul
        if is_in_place and n_printable >= 0.95 * len(text):
            return kind
    return None


def _classify_bytes(around: bytes) -> Format:
    """Distinguish an 8-bit encoding, damaged UTF-8 and binary data."""
    if len(around.translate(None, delete=_NO_CONTROLS)) * 100 > len(around):
        return BINARY
    # A truncated character at the end is not counted.
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(around)
    n_bad = text.count("\ufffd")
    n_good = sum(character > "\x7f" for character in text) - n_bad
    if n_good > n_bad or n_bad == 0:
        return DAMAGED
    return WINDOWS_1252 if any(0x80 <= byte < 0xA0 for byte in around) else LATIN_1


def _text_path(path: Path) -> Path:
    """Return a path in the same folder for the text of a file."""
    if path.suffix.lower() in {".gz", ".bz2", ".xz", ".zst", ".lz4"}:
        inner = path.with_suffix("")
        return inner if inner.suffix else inner.with_name(f"{inner.name}.txt")
    return path.with_name(f"{path.stem}.utf8.txt")
