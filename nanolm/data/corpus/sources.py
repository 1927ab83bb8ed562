"""Built-in datasets: functions of their settings that yield documents."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanolm.config.dataset import (
    DownloadConfig,
    FilesConfig,
    JsonlConfig,
    Nul,
    PythonDocsConfig,
    PythonStdlibConfig,
    TextConfig,
)
from nanolm.data.corpus.fields import text_in
from nanolm.data.corpus.paths import find_files
from nanolm.data.corpus.reading import Part, read_utf8, unreadable
from nanolm.data.download import fetch
from nanolm.errors import DataError
from nanolm.files import user_path
from nanolm.registry import DATASETS


@DATASETS.register("python_docs")
def python_docs(config: PythonDocsConfig) -> Iterator[str]:
    """Read the language reference of the running CPython, by topic in alphabetical order."""
    from pydoc_data.topics import topics

    return (topics[name].strip("\n") + "\n" for name in sorted(topics))


@DATASETS.register("python_stdlib")
def python_stdlib(config: PythonStdlibConfig) -> Iterator[Part]:
    """Read the modules of the running CPython in the order of their paths, without tests and non-UTF-8 files."""
    import sysconfig
    import tokenize

    excluded = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    root = Path(sysconfig.get_path("stdlib"))
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    for path in sorted(paths, key=lambda path: path.as_posix()):
        if excluded.intersection(path.parts[:-1]):
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
    """Read a file, the files in a folder, or the files of a glob, in the order of their paths."""
    for path in find_files(config.path).files:
        yield from _read_one(path, config)


@DATASETS.register("jsonl")
def jsonl(config: JsonlConfig) -> Iterator[str]:
    """Read one field of every JSON object, by file and line."""
    for line, where in numbered_lines(config):
        yield text_in(json_object(line, where), config.field, where)


def numbered_lines(config: FilesConfig) -> Iterator[tuple[str, str]]:
    """Yield the lines of the files that are not blank, each with its file and number as text."""
    for path in find_files(config.path).files:
        number = 0
        for part in _read_one(path, config):
            for line in part.text.split("\n")[: None if part.ends else -1]:
                number += 1
                if line.strip().strip("\ufeff"):
                    yield line.removeprefix("\ufeff"), f"{path}, line {number}"


def json_object(line: str, where: str) -> dict[str, Any]:
    """Parse a line of JSON.

    Raises:
        DataError: it is not JSON, or not an object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON: {error}", where=where, hint="put one JSON object on each line") from error
    if not isinstance(row, dict):
        found = f"this is {type(row).__name__}, not an object"
        raise DataError(found, where=where, hint="put one JSON object on each line")
    return row


def _read_one(path: Path, config: FilesConfig) -> Iterator[Part]:
    """Read a file of a path setting; for one of several, the error hints at a glob that excludes it."""
    given = user_path(config.path)
    hint = ""
    if path != given and path.suffix != ".txt":
        pattern = given / "**" / "*.txt" if given.is_dir() else "FOLDER/**/*.txt"
        hint = f"or read only the text files, by a glob: {shlex.quote(f'dataset.path={pattern}')}"
    return read_utf8(path, allow_nul=config.nul is Nul.allow, hint=hint)


@DATASETS.register("download")
def download(config: DownloadConfig) -> Iterator[Part]:
    """Read a text from a local path, or download it into the cache once; its checksum is verified in every pass."""
    path = user_path(config.path) if config.path else fetch(config.url, config.sha256)
    try:
        if not path.is_file():
            raise DataError(f"there is no file {path}", where="dataset.path", hint="name an existing file")
        found = None
        if config.sha256 is not None:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
    if found != config.sha256:
        raise DataError(
            f"this is not the file of the dataset: {path.stat().st_size:,} bytes with "
            f"sha256 {found}, expected sha256 {config.sha256}",
            where=str(path),
            hint="download it again, or train on your own text with dataset=text dataset.path=...",
        )
    parts = read_utf8(path, allow_nul=config.nul is Nul.allow)
    return _between_gutenberg_marks(parts, path) if config.strip_gutenberg else parts


def _between_gutenberg_marks(parts: Iterator[Part], path: Path) -> Iterator[Part]:
    """Return the text between the lines "*** START OF ..." and "*** END OF ..."."""
    text = "".join(part.text for part in parts)
    start = re.search(r"^\*\*\* ?START OF.*(?:\r?\n|\r)+", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF", text, re.MULTILINE)
    if start is None or end is None or end.start() < start.end():
        raise DataError(
            'the file has no lines "*** START OF ..." and "*** END OF ..." of Project Gutenberg',
            where=str(path),
            hint="download it again, or use the whole file with dataset=text dataset.path=...",
        )
    yield Part(text[start.end() : end.start()].rstrip() + "\n")
