"""Where text comes from, read as strict UTF-8, and how it is split.

A builder of a dataset is a function of its settings that returns the whole text; `load` splits it.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
from pathlib import Path

from nanolm.config import DatasetConfig, DownloadConfig, PythonDocsConfig, TextConfig
from nanolm.data.download import fetch
from nanolm.errors import DataError
from nanolm.registry import DATASETS


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and its splits.

    Attributes:
        splits: {"train": text, "val": text}, contiguous: the validation text is the end.
        fingerprint: sha256 of the whole text in UTF-8.
    """

    splits: dict[str, str]
    fingerprint: str


def load(config: DatasetConfig) -> Corpus:
    """Reads the text that the settings name, and holds out its last `val_fraction` characters.

    Raises:
        DataError: the text is missing, empty, not UTF-8, damaged, or cannot be fetched.
    """
    text = DATASETS[config.name](config)
    if not text.strip():
        raise DataError("the text is empty", where=f"dataset {config.name}", mend="name a text with words in it")
    held_in = int(len(text) * (1 - config.val_fraction))
    return Corpus(
        splits={"train": text[:held_in], "val": text[held_in:]},
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
    )


@DATASETS.register("python_docs")
def python_docs(config: PythonDocsConfig) -> str:
    """The language reference of the running CPython, topic after topic in alphabetical order."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name].strip("\n") + "\n" for name in sorted(topics))


@DATASETS.register("text")
def text(config: TextConfig) -> str:
    """A file, every file in a folder, or the files of a glob, in the order of their paths."""
    paths = _text_files(config.path)
    texts = [read_utf8(path) for path in paths]
    if len(paths) == 1 and not texts[0].strip():
        raise DataError("the file is empty", where=config.path, mend="dataset.path= a file with text in it")
    return "\n".join(texts)


@DATASETS.register("download")
def download(config: DownloadConfig) -> str:
    """A text from a local path, or from the cache, into which it is fetched once; verified every time."""
    path = Path(config.path).expanduser() if config.path else fetch(config.url, config.sha256)
    if not path.exists():
        raise DataError(f"there is no file {path}", where="dataset.path", mend="name an existing file")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != config.sha256:
        raise DataError(
            f"these are not the bytes that this dataset stands for: {len(content):,} bytes with "
            f"sha256 {hashlib.sha256(content).hexdigest()}, expected sha256 {config.sha256}",
            where=str(path),
            mend="fetch it anew, or train on your own text with dataset=text dataset.path=...",
        )
    return read_utf8(path)


def read_utf8(path: Path) -> str:
    """The text of a file, line ends and byte order mark as they stand.

    Raises:
        DataError: it cannot be read, or has bytes that are not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} (0x{content[error.start]:02x}) is not UTF-8: {error.reason}",
            where=f"{path}, byte offset {error.start}",
            mend=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}; "
            "in a folder, name the text files alone with a glob such as 'folder/**/*.txt'",
        ) from error


def _text_files(pattern: str) -> list[Path]:
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
