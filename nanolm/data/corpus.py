"""Where text comes from, read as strict UTF-8, and how it is split.

A corpus is a sequence of documents. A builder of a dataset is a function of its settings that yields them, each a
string, or a text of several megabytes as a row of Parts, so that no text is ever held whole; one that returns a string
has one document. It is called anew for every pass over the corpus and must yield the same every time.

Documents stand one below the other: each but the last of the corpus has one line end added. A document without a
single character is passed over. NUL and every other character is kept.
"""

from __future__ import annotations

import codecs
import dataclasses
import glob
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from nanolm.config import (
    Bom,
    DatasetConfig,
    DownloadConfig,
    HuggingFaceConfig,
    JsonlConfig,
    Newlines,
    PythonDocsConfig,
    PythonStdlibConfig,
    SplitBy,
    TextConfig,
)
from nanolm.data.download import fetch
from nanolm.data.permutation import mix, permute
from nanolm.errors import DataError
from nanolm.registry import DATASETS

# A file with more bytes than this is read in parts of about this size.
PART_BYTES = 2**21
# Documents whose split is drawn at once.
DRAWN_AT_ONCE = 2**16


class Part(NamedTuple):
    """A document, or a part of a long one, cut behind a line end.

    Attributes:
        text: of any length.
        ends: whether the document ends with it.
    """

    text: str
    ends: bool = True


class Piece(NamedTuple):
    """A stretch of a split.

    Attributes:
        split: train, val or test.
        text: as it stands in the split, line ends between documents included.
        begins: whether a document (or, split by line, a line) begins with it.
    """

    split: str
    text: str
    begins: bool


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and its splits, read anew in every pass.

    Attributes:
        config: what it is read from.
        splits: train and val, and test where one was asked for.
        fingerprint: sha256 over the sha256 of each document, in order.
        n_documents: of each source: train, and val and test where they have files of their own.
        n_characters: the same, line ends between documents included.
        n_lines: the same.
    """

    config: DatasetConfig
    splits: tuple[str, ...]
    fingerprint: str
    n_documents: dict[str, int]
    n_characters: dict[str, int]
    n_lines: dict[str, int]

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split in order, a long one in parts cut at line ends; joined they are its text."""
        return (piece.text for piece in self.pieces() if piece.split == split)

    def pieces(self) -> Iterator[Piece]:
        """One pass over all splits, each in its order.

        Raises:
            DataError: the text is not what it was when the corpus was loaded.
        """
        digest = _Digest()
        for source, config in _sources(self.config).items():
            parts = digest.of(source, _below_each_other(_read(config)))
            for piece in self._split(source, parts):
                if piece.text:
                    yield piece
        if digest.hexdigest() != self.fingerprint:
            raise DataError(
                "the text changed while it was being read",
                where=f"dataset {self.config.name}",
                mend="run the command again when nothing writes to it",
            )

    def _split(self, source: str, parts: Iterator[Part]) -> Iterator[Piece]:
        shares = _shares(self.config, source)
        if source != "train" or len(shares) == 1:
            return _whole(source, parts)
        if self.config.split_by is SplitBy.fraction:
            return _by_fraction(parts, shares, self.n_characters[source])
        if self.config.split_by is SplitBy.line:
            splits = _drawn(shares, self.n_lines[source], self.config.split_seed, "lines")
            return _by_line(parts, splits)
        splits = _drawn(shares, self.n_documents[source], self.config.split_seed, "documents")
        return _by_document(parts, splits)


def load(config: DatasetConfig) -> Corpus:
    """Reads the text that the settings name once, to count and fingerprint it.

    Raises:
        DataError: the text is missing, empty, not UTF-8, damaged, has too few documents to split, or cannot be
            fetched.
    """
    digest = _Digest()
    n_documents, n_characters, n_lines = {}, {}, {}
    for source, source_config in _sources(config).items():
        is_blank = True
        documents = characters = line_ends = 0
        last = ""
        for text, ends in digest.of(source, _below_each_other(_read(source_config))):
            documents += ends
            characters += len(text)
            line_ends += text.count("\n")
            is_blank = is_blank and not text.strip()
            last = text
        if is_blank:
            where = getattr(source_config, "path", None) or f"dataset {config.name}"
            raise DataError(
                f"the {source} text is empty" if source != "train" else "the text is empty",
                where=str(where),
                mend="name a text with words in it",
            )
        n_documents[source] = documents
        n_characters[source] = characters
        n_lines[source] = line_ends + (not last.endswith("\n"))
    shares = _shares(config, "train")
    kind = {SplitBy.document: "documents", SplitBy.line: "lines"}.get(config.split_by)
    if kind and len(shares) > 1:
        _held_out(shares, n_documents["train"] if kind == "documents" else n_lines["train"], kind)
    own = [source for source in n_documents if source != "train"]
    splits = tuple(split for split in ("train", "val", "test") if split in shares or split in own)
    return Corpus(config, splits, digest.hexdigest(), n_documents, n_characters, n_lines)


def split_settings(config: DatasetConfig) -> dict[str, Any]:
    """What decides the splits of a given text, as plain values."""
    return {
        "shares": _shares(config, "train"),
        "split_by": config.split_by.name,
        "split_seed": None if config.split_by is SplitBy.fraction else config.split_seed,
    }


def _sources(config: DatasetConfig) -> dict[str, DatasetConfig]:
    """The settings that each text is read with: the one that is split, and the files that are val or test as such."""
    sources = {"train": config}
    for split in ("val", "test"):
        if path := getattr(config, f"{split}_path", None):
            sources[split] = dataclasses.replace(config, path=path)  # type: ignore[call-arg]
        elif name := getattr(config, f"{split}_split", None):
            sources[split] = dataclasses.replace(config, train_split=name)  # type: ignore[call-arg]
    return sources


def _shares(config: DatasetConfig, source: str) -> dict[str, float]:
    """What part of a source goes to each split."""
    if source != "train":
        return {source: 1.0}
    own = _sources(config)
    held_out = {"val": config.val_fraction, "test": config.test_fraction}
    held_out = {split: fraction for split, fraction in held_out.items() if fraction and split not in own}
    return {"train": 1 - held_out.get("val", 0.0) - held_out.get("test", 0.0), **held_out}


def _read(config: DatasetConfig) -> Iterator[Part]:
    """The parts of the documents of a source, as the settings want line ends and byte order marks."""
    documents: str | Iterable[str | Part] = DATASETS[config.name](config)
    begins = True
    for document in [documents] if isinstance(documents, str) else documents:
        text, ends = document if isinstance(document, Part) else Part(document)
        if begins and config.bom is Bom.strip:
            text = text.removeprefix("\ufeff")
        if config.newlines is Newlines.normalize and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text or not begins:
            yield Part(text, ends)
            begins = ends


def _below_each_other(parts: Iterator[Part]) -> Iterator[Part]:
    """Adds the line end that parts a document from the next."""
    before: Part | None = None
    for part in parts:
        if before is not None:
            yield Part(before.text + "\n", True) if before.ends else before
        before = part
    if before is not None:
        yield before


class _Digest:
    """sha256 over the sha256 of each document that passes through, however it is cut into parts."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def of(self, source: str, parts: Iterator[Part]) -> Iterator[Part]:
        """The same parts, each added as it passes."""
        self._sha256.update(source.encode())
        number, document = 1, hashlib.sha256()
        for part in parts:
            try:
                document.update(part.text.encode())
            except UnicodeEncodeError as error:
                raise DataError(
                    f"U+{ord(part.text[error.start]):04X} is half a character (a lone surrogate), which UTF-8 has no "
                    "bytes for",
                    where=f"document {number} of the {source} text, which begins {part.text[:40]!r}",
                    mend="leave it out",
                ) from error
            if part.ends:
                self._sha256.update(document.digest())
                number, document = number + 1, hashlib.sha256()
            yield part

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def _whole(split: str, parts: Iterator[Part]) -> Iterator[Piece]:
    begins = True
    for part in parts:
        yield Piece(split, part.text, begins)
        begins = part.ends


def _by_fraction(parts: Iterator[Part], shares: dict[str, float], n_characters: int) -> Iterator[Piece]:
    """Consecutive stretches of the text, measured in characters."""
    test = shares.get("test", 0.0)
    ends_at = {
        "train": int(n_characters * (1 - shares.get("val", 0.0) - test)),
        "val": int(n_characters * (1 - test)),
        "test": n_characters,
    }
    cuts = [(split, ends_at[split] if split != list(shares)[-1] else n_characters) for split in shares]
    position, begins = 0, True
    for text, ends in parts:
        while text:
            split, end = cuts[0]
            if position == end and len(cuts) > 1:
                cuts.pop(0)
                begins = True
                continue
            taken = text[: end - position]
            yield Piece(split, taken, begins)
            position += len(taken)
            text = text[len(taken) :]
            begins = False
        begins = begins or ends


def _by_document(parts: Iterator[Part], splits: Iterator[str]) -> Iterator[Piece]:
    begins, split = True, ""
    for text, ends in parts:
        if begins:
            split = next(splits)
        yield Piece(split, text, begins)
        begins = ends


def _by_line(parts: Iterator[Part], splits: Iterator[str]) -> Iterator[Piece]:
    """Lines of a part that fall to the same split come as one piece, each with its line end."""
    unfinished = ""
    for part in parts:
        *lines, unfinished = (unfinished + part.text).split("\n")
        gathered: dict[str, list[str]] = {}
        for line in lines:
            gathered.setdefault(next(splits), []).append(line)
        for split, inside in gathered.items():
            yield Piece(split, "\n".join(inside) + "\n", True)
    if unfinished:
        yield Piece(next(splits), unfinished, True)


def _drawn(shares: dict[str, float], n: int, seed: int, kind: str) -> Iterator[str]:
    """The split of each document or line in turn: exact numbers of them, drawn without replacement."""
    held_out = _held_out(shares, n, kind)
    n_val, n_held_out = held_out.get("val", 0), sum(held_out.values())
    for start in range(0, n, DRAWN_AT_ONCE):
        places = permute(np.arange(start, min(start + DRAWN_AT_ONCE, n)), n, mix(seed))
        for place in places.tolist():
            yield "val" if place < n_val else "test" if place < n_held_out else "train"


def _held_out(shares: dict[str, float], n: int, kind: str) -> dict[str, int]:
    """How many documents or lines each held-out split has: its share, and at least one.

    Raises:
        DataError: none is left to train on.
    """
    held_out = {split: max(1, round(n * share)) for split, share in shares.items() if split != "train"}
    if sum(held_out.values()) >= n:
        raise DataError(
            f"the text has {n:,} {kind}, and the splits {', '.join(shares)} need at least {len(shares)}",
            where="dataset.split_by",
            mend="dataset.split_by=fraction cuts a text anywhere",
        )
    return held_out


@DATASETS.register("python_docs")
def python_docs(config: PythonDocsConfig) -> Iterator[str]:
    """The language reference of the running CPython, topic after topic in alphabetical order."""
    from pydoc_data.topics import topics

    return (topics[name].strip("\n") + "\n" for name in sorted(topics))


@DATASETS.register("python_stdlib")
def python_stdlib(config: PythonStdlibConfig) -> Iterator[Part]:
    """The modules of the running CPython in the order of their paths; its tests and what is not UTF-8 left out."""
    import sysconfig
    import tokenize

    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    for path in sorted(paths, key=lambda path: path.as_posix()):
        if left_out.intersection(path.parts[:-1]):
            continue
        with (root / path).open("rb") as file:
            try:
                encoding, _ = tokenize.detect_encoding(file.readline)
            except SyntaxError:
                continue
        if encoding in ("utf-8", "utf-8-sig"):
            yield from read_utf8(root / path)


@DATASETS.register("text")
def text(config: TextConfig) -> Iterator[Part]:
    """A file, every file in a folder, or the files of a glob, in the order of their paths."""
    for path in _files(config.path):
        yield from read_utf8(path)


@DATASETS.register("jsonl")
def jsonl(config: JsonlConfig) -> Iterator[str]:
    """The text of one field of every JSON object, file after file, line after line."""
    for path in _files(config.path):
        number = 0
        for part in read_utf8(path):
            for line in part.text.split("\n")[: None if part.ends else -1]:
                number += 1
                if line.strip().strip("\ufeff"):
                    yield _field(line.removeprefix("\ufeff"), config.field, f"{path}, line {number}")


@DATASETS.register("huggingface")
def huggingface(config: HuggingFaceConfig) -> Iterator[str]:
    """The texts of one field of a dataset of the hub or of a local folder, in its order."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            "dataset=huggingface needs the package `datasets`",
            where="dataset.name",
            mend="pip install 'nanolm[hf]'",
        ) from error
    datasets.disable_progress_bars()
    folder = Path(config.path).expanduser()
    name = str(folder) if folder.exists() else config.path
    where = f"{config.path}, split {config.train_split}"
    try:
        rows = datasets.load_dataset(name, config.subset, split=config.train_split, streaming=config.streaming)
        for number, row in enumerate(rows):
            if number == config.max_documents:
                break
            yield _text_in(row, config.field, f"{where}, row {number + 1}")
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the dataset cannot be read: {type(error).__name__}: {' '.join(str(error).split())}",
            where=where,
            mend="dataset.path= its name on the hub or a local folder of parquet or JSON files, "
            "dataset.subset= and dataset.train_split= as it has them",
        ) from error


@DATASETS.register("download")
def download(config: DownloadConfig) -> Iterator[Part]:
    """A text from a local path, or from the cache, into which it is fetched once; verified in every pass."""
    path = Path(config.path).expanduser() if config.path else fetch(config.url, config.sha256)
    if not path.is_file():
        raise DataError(f"there is no file {path}", where="dataset.path", mend="name an existing file")
    if config.sha256 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != config.sha256:
            raise DataError(
                f"these are not the bytes that this dataset stands for: {path.stat().st_size:,} bytes with "
                f"sha256 {found}, expected sha256 {config.sha256}",
                where=str(path),
                mend="fetch it anew, or train on your own text with dataset=text dataset.path=...",
            )
    parts = read_utf8(path)
    return _between_gutenberg_marks(parts, path) if config.strip_gutenberg else parts


def read_utf8(path: Path) -> Iterator[Part]:
    """The text of a file, line ends and byte order mark as they stand.

    A long file comes in parts of about PART_BYTES, cut behind line ends; a line that is longer than that stays whole.

    Raises:
        DataError: it cannot be read, or has bytes that are not UTF-8.
    """
    try:
        with path.open("rb") as file:
            yield from _decoded(file, path)
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", where=str(path)) from error


def _decoded(file: IO[bytes], path: Path) -> Iterator[Part]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held: list[str] = []
    offset = 0
    while True:
        block = file.read(PART_BYTES)
        # What the decoder holds of a character that the last block cut.
        pending = len(decoder.getstate()[0])
        try:
            decoded = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise DataError(
                f"byte {at} (0x{error.object[error.start]:02x}) is not UTF-8: {error.reason}",
                where=f"{path}, byte offset {at}",
                mend=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}; "
                "in a folder, name the text files alone with a glob such as 'folder/**/*.txt'",
            ) from error
        offset += len(block)
        if not block:
            yield Part("".join(held) + decoded, True)
            return
        cut = decoded.rfind("\n") + 1
        if cut and offset >= PART_BYTES:
            yield Part("".join(held) + decoded[:cut], False)
            held = [decoded[cut:]]
        else:
            held.append(decoded)


def _between_gutenberg_marks(parts: Iterator[Part], path: Path) -> Iterator[Part]:
    """What stands between the lines "*** START OF ..." and "*** END OF ..."."""
    text = "".join(part.text for part in parts)
    start = re.search(r"^\*\*\* ?START OF.*(?:\r?\n|\r)+", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF", text, re.MULTILINE)
    if start is None or end is None or end.start() < start.end():
        raise DataError(
            'the file has no lines "*** START OF ..." and "*** END OF ..." as Project Gutenberg sets them',
            where=str(path),
            mend="fetch it anew, or train on it as it stands with dataset=text dataset.path=...",
        )
    yield Part(text[start.end() : end.start()].rstrip() + "\n")


def _field(line: str, field: str, where: str) -> str:
    """The text of a field of a line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON: {error}", where=where, mend="one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"this is {type(row).__name__}, not an object", where=where, mend="one JSON object a line")
    return _text_in(row, field, where)


def _text_in(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(f"there is no field {field!r}", where=where, mend=f"dataset.field= one of: {there}")
    if not isinstance(row[field], str):
        raise DataError(
            f"the field {field!r} holds {type(row[field]).__name__}, not text",
            where=where,
            mend=f"dataset.field= one of: {', '.join(str(k) for k, v in row.items() if isinstance(v, str)) or 'none'}",
        )
    return row[field]


def _files(pattern: str) -> list[Path]:
    """A file, the files in a folder (hidden ones left out) or of a glob, in the order of their paths."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if file.is_file())
        files = [file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        if not files:
            raise DataError("the folder has no files", where=str(path), mend="dataset.path= a folder with text in it")
        return files
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(
            f"there is no file, folder or match of {pattern!r}",
            where=f"dataset.path, looked for from {Path.cwd()}",
            mend="name an existing file or folder, or a glob such as 'notes/**/*.md'",
        )
    return files
