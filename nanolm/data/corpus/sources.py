"""Built-in datasets: functions of their settings that yield documents."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nanolm.config.dataset import (
    DownloadConfig,
    FilesConfig,
    HuggingFaceConfig,
    JsonlConfig,
    Nul,
    PythonDocsConfig,
    PythonStdlibConfig,
    TextConfig,
)
from nanolm.data.corpus.exclusions import excluded_kind
from nanolm.data.corpus.paths import find_files
from nanolm.data.corpus.reading import Part, read_utf8, unreadable
from nanolm.data.download import fetch, require_asked
from nanolm.errors import DataError, install_hint
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
    for path in find_files(config.path).files:
        number = 0
        for part in _read_one(path, config):
            for line in part.text.split("\n")[: None if part.ends else -1]:
                number += 1
                if line.strip().strip("\ufeff"):
                    yield _field(line.removeprefix("\ufeff"), config.field, f"{path}, line {number}")


def _read_one(path: Path, config: FilesConfig) -> Iterator[Part]:
    """Read a file of a path setting; for one of several, the error hints at a glob that excludes it."""
    given = user_path(config.path)
    hint = ""
    if path != given and path.suffix != ".txt":
        pattern = given / "**" / "*.txt" if given.is_dir() else "FOLDER/**/*.txt"
        hint = f"or read only the text files, by a glob: {shlex.quote(f'dataset.path={pattern}')}"
    return read_utf8(path, allow_nul=config.nul is Nul.allow, hint=hint)


@DATASETS.register("huggingface")
def huggingface(config: HuggingFaceConfig) -> Iterator[str]:
    """Read one field of a dataset of the Hugging Face Hub or of a local folder, in its order."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise DataError(
            "dataset=huggingface needs the package `datasets`",
            where="dataset.name",
            hint=install_hint("hf"),
        ) from error
    datasets.disable_progress_bars()
    folder = user_path(config.path)
    name = str(folder) if os.path.lexists(folder) else config.path
    if not folder.is_dir():
        require_asked("dataset.path", config.path)
    where = f"{config.path}, split {config.train_split}"
    try:
        if folder.is_dir():
            _require_no_runs(folder, datasets.load_dataset_builder(name, config.subset).config.data_files)
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
            hint="use dataset.path= with its name on the Hub or a local folder of Parquet or JSON files, and "
            "dataset.subset= and dataset.train_split= with names that it has",
        ) from error


def _require_no_runs(folder: Path, data_files: Mapping[str, Iterable[str]] | None) -> None:
    """Refuse data files of a local folder that belong to a run, a sweep or nanolm's cache.

    Raises:
        DataError: there are such files.
    """
    for path in (path for paths in (data_files or {}).values() for path in paths):
        kind = excluded_kind(folder, Path(path))
        if kind is not None:
            raise DataError(
                f"the dataset has files of a {kind}, which is not training text",
                where=f"dataset.path {folder}: {path}",
                hint="move it elsewhere, or name a folder without it",
            )


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


def _field(line: str, field: str, where: str) -> str:
    """Return the text of one field of a line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON: {error}", where=where, hint="put one JSON object on each line") from error
    if not isinstance(row, dict):
        found = f"this is {type(row).__name__}, not an object"
        raise DataError(found, where=where, hint="put one JSON object on each line")
    return _text_in(row, field, where)


def _text_in(row: dict[str, Any], field: str, where: str) -> str:
    if isinstance(row.get(field), str):
        return row[field]
    if field not in row:
        found, choices = f"there is no field {field!r}", list(row)
    else:
        found = f"the field {field!r} holds {type(row[field]).__name__}, not text"
        choices = [name for name, value in row.items() if isinstance(value, str)]
    hint = f"set dataset.field to one of: {', '.join(map(str, choices)) or 'none'}"
    raise DataError(found, where=where, hint=hint)
