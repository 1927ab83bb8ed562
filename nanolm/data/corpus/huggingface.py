"""Datasets of the Hugging Face Hub and of local folders, read by the package `datasets`.

A dataset may come from anywhere, and its README names the files that the package reads, which may be any file of this
machine. Only the files of the folder, or of the dataset on the Hub, are read, and only as text.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import lzma
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nanolm.config.dataset import HuggingFaceConfig
from nanolm.data.corpus.exclusions import excluded_kind
from nanolm.data.corpus.fields import text_in
from nanolm.data.download import require_asked
from nanolm.errors import DataError, install_hint
from nanolm.files import user_path
from nanolm.plain_yaml import LOADER, PlainYamlError, load_plain_yaml
from nanolm.registry import DATASETS
from nanolm.untrusted import MAX_BYTES, read_inside

# Modules of `datasets` that read text. Others read images and other files that the rows name.
_READERS = ("arrow", "csv", "json", "parquet", "text")
# Files in which a folder describes itself.
_CARDS = ("README.md", ".huggingface.yaml")
_SUFFIXES = {".arrow", ".csv", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt"}
_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}

# The text of a folder may have this many times the size of its files, and always the number of bytes that follows.
MAX_RATIO, FREE_BYTES = 100, 100_000_000
# Reads dates and numbers as text.
_TEXT_LOADER: Any = type("TextLoader", (LOADER,), {"yaml_implicit_resolvers": {}})
# As huggingface_hub finds the YAML in a README.
_HEADER = re.compile(rb"\s*---[\r\n]+([\s\S]*?)[\r\n]+---(?:\r\n|\n|$)")
# Rows of a Parquet file that are in memory together.
_BATCH_ROWS = 256


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
    is_local = folder.is_dir()
    name = str(folder) if os.path.lexists(folder) else config.path
    where = f"{config.path}, split {config.train_split}"
    if is_local:
        _check_cards(folder)
    else:
        require_asked("dataset.path", config.path)
    try:
        builder = datasets.load_dataset_builder(name, config.subset)
        limit = _check_files(folder if is_local else None, builder)
        if type(builder).__module__.endswith(".parquet"):
            builder.config.batch_size = _BATCH_ROWS
        rows = _rows(builder, config, where)
        n_bytes = 0
        for number, row in enumerate(rows):
            if number == config.max_documents:
                break
            text = text_in(row, config.field, f"{where}, row {number + 1}")
            n_bytes += len(text)
            if n_bytes > limit:
                raise _expands(folder, where)
            yield text
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the dataset cannot be read: {type(error).__name__}: {' '.join(str(error).split())}",
            where=where,
            hint="use dataset.path= with its name on the Hub or a local folder of Parquet or JSON files, and "
            "dataset.subset= and dataset.train_split= with names that it has",
        ) from error


def _rows(builder: Any, config: HuggingFaceConfig, where: str) -> Iterable[dict[str, Any]]:
    """Return the rows of the training split, with the field of the text alone if the columns are known."""
    import datasets

    if config.streaming:
        rows = builder.as_streaming_dataset(split=config.train_split)
    else:
        builder.download_and_prepare()
        rows = builder.as_dataset(split=config.train_split)
    if not rows.features:
        return rows
    feature = rows.features.get(config.field)
    # Other features, such as Image, would open the file that a row names.
    if isinstance(feature, datasets.Value):
        return rows.select_columns([config.field])
    strings = {key: "" for key, kind in rows.features.items() if isinstance(kind, datasets.Value)}
    return [strings | ({} if feature is None else {config.field: feature})]


def _check_cards(folder: Path) -> None:
    """Check that the files in which a folder describes itself name no files elsewhere.

    Raises:
        DataError: they do, or cannot be read.
    """
    for name in _CARDS:
        path = folder / name
        try:
            content = read_inside(path, folder, MAX_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(
                f"{name} cannot be read: {error.strerror or error}", where=str(path), hint="remove it"
            ) from error
        if name == "README.md":
            header = _HEADER.match(content)
            content = header[1] if header else b""
        try:
            described = load_plain_yaml(content, _TEXT_LOADER)
        except PlainYamlError as error:
            line = f":{error.line}" if error.line else ""
            raise DataError(
                f"{name} is refused: {error}", where=f"{path}{line}", hint="correct or remove it"
            ) from error
        for pattern in _strings(described.get("configs") if isinstance(described, dict) else None):
            if _is_elsewhere(pattern):
                raise DataError(
                    f"{name} names a file outside of the folder: {pattern!r}",
                    where=str(path),
                    hint="remove it from `configs`, and move the file into the folder if it belongs there",
                )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _is_elsewhere(pattern: str) -> bool:
    """Whether a pattern is absolute, an address, or leads out of the folder."""
    parts = pattern.replace("\\", "/").split("/")
    return (parts[0] in ("", "~") and len(parts) > 1) or ".." in parts or "://" in pattern or "::" in pattern


def _check_files(folder: Path | None, builder: Any) -> float:
    """Check the files of a dataset before they are read.

    Args:
        folder: the local folder; None for a dataset of the Hub.
        builder: of the package `datasets`.

    Returns:
        The number of characters that the text may have.

    Raises:
        DataError: a file is outside of the folder, of a run, of another format, or expands without bound.
    """
    module = type(builder).__module__.rsplit(".", 1)[-1]
    if module not in _READERS:
        raise DataError(
            f"the dataset is read by the module {module!r} of `datasets`, and only {', '.join(_READERS)} read text",
            where=f"dataset.path {folder or builder.base_path}",
            hint="export its text as Parquet or JSON Lines",
        )
    data_files: Mapping[str, Iterable[str]] = builder.config.data_files or {}
    paths = [str(path) for paths in data_files.values() for path in paths]
    if folder is None:
        for path in paths:
            if urlsplit(path).scheme != "hf":
                raise DataError(
                    f"the dataset names a file that is not on the Hub: {path}",
                    where=f"dataset.path {builder.base_path}",
                    hint="use another dataset, or download it and check what it names",
                )
        return float("inf")
    n_bytes = sum(_check_file(Path(path), folder) for path in paths)
    return FREE_BYTES + MAX_RATIO * n_bytes


def _check_file(path: Path, folder: Path) -> int:
    """Check a data file of a local folder, and return its size."""
    where = f"dataset.path {folder}: {path}"
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise DataError(
            "the dataset names a file outside of its folder" + (f": {real}" if real != path else ""),
            where=where,
            hint=f"copy the files themselves in place of links: cp -rL {folder} COPY",
        )
    status = real.stat()
    suffix = path.suffix.lower()
    open_file = _OPEN.get(suffix)
    inner = Path(path.stem).suffix.lower() if open_file else suffix
    if not stat.S_ISREG(status.st_mode) or inner not in _SUFFIXES:
        raise DataError(
            "the dataset has a file of another format",
            where=where,
            hint=f"unpack or remove it, or move it elsewhere; the formats are {', '.join(sorted(_SUFFIXES))}, also "
            f"with {', '.join(_OPEN)}",
        )
    kind = excluded_kind(folder, path)
    if kind is not None:
        raise DataError(
            f"the dataset has files of a {kind}, which is not training text",
            where=where,
            hint="move it elsewhere, or name a folder without it",
        )
    if open_file is not None and not _expands_within(real, status.st_size, status.st_mtime_ns, open_file, where):
        raise _expands(path, where)
    if suffix == ".parquet":
        import pyarrow.parquet

        about = pyarrow.parquet.read_metadata(real)
        expanded = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
        if expanded > FREE_BYTES + MAX_RATIO * status.st_size:
            raise _expands(path, where)
    return status.st_size


@functools.cache
def _expands_within(path: Path, size: int, modified: int, open_file: Any, where: str) -> bool:
    """Decompress a file, without keeping anything, and return whether it stays within the limit."""
    left = FREE_BYTES + MAX_RATIO * size
    try:
        with open_file(path) as file:
            while block := file.read(1 << 20):
                left -= len(block)
                if left < 0:
                    return False
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path.name} cannot be decompressed: {error}", where=where, hint="restore it") from error
    return True


def _expands(path: Path, where: str) -> DataError:
    return DataError(
        f"{path.name} expands to more than {MAX_RATIO} times its size",
        where=where,
        hint="such files are made to fill a disk or the memory; if its content is what you expect, unpack it yourself",
    )
