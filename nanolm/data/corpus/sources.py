"""The built-in datasets: each a function of its settings that yields documents."""

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
    HuggingFaceConfig,
    JsonlConfig,
    Nul,
    PythonDocsConfig,
    PythonStdlibConfig,
    TextConfig,
)
from nanolm.data.corpus.exclusions import kind_below
from nanolm.data.corpus.paths import find_files
from nanolm.data.corpus.reading import Part, read_utf8, unreadable
from nanolm.data.download import fetch
from nanolm.errors import DataError, install_hint
from nanolm.files import user_path
from nanolm.registry import DATASETS


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
    for path in find_files(config.path).files:
        yield from _read_one(path, config)


@DATASETS.register("jsonl")
def jsonl(config: JsonlConfig) -> Iterator[str]:
    """The text of one field of every JSON object, file after file, line after line."""
    for path in find_files(config.path).files:
        number = 0
        for part in _read_one(path, config):
            for line in part.text.split("\n")[: None if part.ends else -1]:
                number += 1
                if line.strip().strip("\ufeff"):
                    yield _field(line.removeprefix("\ufeff"), config.field, f"{path}, line {number}")


def _read_one(path: Path, config: TextConfig | JsonlConfig) -> Iterator[Part]:
    """A file of a path setting; of several files, the error for one that is no text says how to leave it out."""
    given = user_path(config.path)
    hint = ""
    if path != given and path.suffix != ".txt":
        pattern = given / "**" / "*.txt" if given.is_dir() else "FOLDER/**/*.txt"
        hint = f"or read only the text files, by a glob: {shlex.quote(f'dataset.path={pattern}')}"
    return read_utf8(path, allow_nul=config.nul is Nul.allow, hint=hint)


@DATASETS.register("huggingface")
def huggingface(config: HuggingFaceConfig) -> Iterator[str]:
    """The texts of one field of a dataset of the hub or of a local folder, in its order."""
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
            hint="dataset.path= its name on the hub or a local folder of parquet or JSON files, "
            "dataset.subset= and dataset.train_split= as it has them",
        ) from error


def _require_no_runs(folder: Path, data_files: Mapping[str, Iterable[str]] | None) -> None:
    """Refuse data files of a local folder that belong to a run, a sweep or nanolm's cache.

    Raises:
        DataError: there are such files.
    """
    for path in (path for paths in (data_files or {}).values() for path in paths):
        kind = kind_below(folder, Path(path))
        if kind is not None:
            raise DataError(
                f"the dataset has files of a {kind}, which is not training text",
                where=f"dataset.path {folder}: {path}",
                hint="move it elsewhere, or name a folder without it",
            )


@DATASETS.register("download")
def download(config: DownloadConfig) -> Iterator[Part]:
    """A text from a local path, or from the cache, into which it is fetched once; verified in every pass."""
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
            f"these are not the bytes that this dataset stands for: {path.stat().st_size:,} bytes with "
            f"sha256 {found}, expected sha256 {config.sha256}",
            where=str(path),
            hint="fetch it anew, or train on your own text with dataset=text dataset.path=...",
        )
    parts = read_utf8(path, allow_nul=config.nul is Nul.allow)
    return _between_gutenberg_marks(parts, path) if config.strip_gutenberg else parts


def _between_gutenberg_marks(parts: Iterator[Part], path: Path) -> Iterator[Part]:
    """What stands between the lines "*** START OF ..." and "*** END OF ..."."""
    text = "".join(part.text for part in parts)
    start = re.search(r"^\*\*\* ?START OF.*(?:\r?\n|\r)+", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF", text, re.MULTILINE)
    if start is None or end is None or end.start() < start.end():
        raise DataError(
            'the file has no lines "*** START OF ..." and "*** END OF ..." as Project Gutenberg sets them',
            where=str(path),
            hint="fetch it anew, or train on it as it stands with dataset=text dataset.path=...",
        )
    yield Part(text[start.end() : end.start()].rstrip() + "\n")


def _field(line: str, field: str, where: str) -> str:
    """The text of a field of a line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"this is not JSON: {error}", where=where, hint="one JSON object a line") from error
    if not isinstance(row, dict):
        raise DataError(f"this is {type(row).__name__}, not an object", where=where, hint="one JSON object a line")
    return _text_in(row, field, where)


def _text_in(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        there = ", ".join(map(str, row)) or "none"
        raise DataError(f"there is no field {field!r}", where=where, hint=f"dataset.field= one of: {there}")
    if not isinstance(row[field], str):
        raise DataError(
            f"the field {field!r} holds {type(row[field]).__name__}, not text",
            where=where,
            hint=f"dataset.field= one of: {', '.join(str(k) for k, v in row.items() if isinstance(v, str)) or 'none'}",
        )
    return row[field]
