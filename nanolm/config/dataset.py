"""Where the text comes from, and what is held out."""

from __future__ import annotations

import dataclasses
import enum

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare, path_field
from nanolm.registry import DATASETS


class SplitBy(enum.Enum):
    """What is held out for validation and test.

    fraction: the end of the text, as it stands; the cut may go through a document.
    document: whole documents, drawn at random.
    line: single lines, drawn at random.
    """

    fraction = "fraction"
    document = "document"
    line = "line"


class Newlines(enum.Enum):
    """Line ends: kept as they stand, or CRLF and lone CR made LF."""

    keep = "keep"
    normalize = "normalize"


class Bom(enum.Enum):
    """A byte order mark (U+FEFF) that begins a document: kept as a character, or taken off."""

    keep = "keep"
    strip = "strip"


class Nul(enum.Enum):
    """Text in which more than 1% of the characters are NUL (U+0000), and at least 4: refused, or read as it stands.

    Such a file is usually UTF-16 without a byte order mark, or no text.
    """

    refuse = "refuse"
    allow = "allow"


@dataclasses.dataclass
class DatasetConfig:
    """What every dataset has: how much is held out, by what, and how line ends, byte order marks and NULs are read."""

    name: str = MISSING
    val_fraction: float = bounded(
        0.1, gt=0, lt=1, off="0.01 keeps it small; it cannot be switched off: runs are judged by their validation loss"
    )
    # 0: there is no test split.
    test_fraction: float = bounded(0.0, ge=0, lt=1, off="0 keeps no test split")
    split_by: SplitBy = SplitBy.fraction
    # Draws the documents or lines that are held out; apart from `seed`, so that all seeds are scored on the same text.
    split_seed: int = bounded(1337, ge=0, lt=2**63)
    newlines: Newlines = Newlines.keep
    bom: Bom = Bom.keep
    nul: Nul = Nul.refuse


@dataclasses.dataclass
class PythonDocsConfig(DatasetConfig):
    """The language reference that comes with every CPython."""

    name: str = "python_docs"


@dataclasses.dataclass
class PythonStdlibConfig(DatasetConfig):
    """The source of the running CPython's standard library, without its tests; a file a document."""

    name: str = "python_stdlib"


@dataclasses.dataclass
class TextConfig(DatasetConfig):
    """Anyone's text: a file, a folder (every file in it) or a glob such as 'notes/**/*.md'; a file a document."""

    name: str = "text"
    path: str = path_field()
    # Files, folders or globs of their own, in place of a fraction of `path`.
    val_path: str | None = path_field(None)
    test_path: str | None = path_field(None)


@dataclasses.dataclass
class JsonlConfig(DatasetConfig):
    """JSON objects, one a line; the text of `field` is a document. Blank lines are passed over."""

    name: str = "jsonl"
    path: str = path_field()
    field: str = "text"
    # Files, folders or globs of their own, in place of a fraction of `path`.
    val_path: str | None = path_field(None)
    test_path: str | None = path_field(None)


@dataclasses.dataclass
class HuggingFaceConfig(DatasetConfig):
    """A dataset of the Hugging Face hub, by its name there, or a local folder of parquet or JSON files."""

    name: str = "huggingface"
    path: str = path_field()
    # The hub's word for it is the configuration of a dataset, such as wikitext-2-raw-v1.
    subset: str | None = None
    field: str = "text"
    train_split: str = "train"
    # The dataset's own splits, in place of a fraction of `train_split`.
    val_split: str | None = None
    test_split: str | None = None
    # Read as it comes; false fetches all of it into the cache of `datasets` first.
    streaming: bool = True
    # Reads the first so many documents of each split; null: all.
    max_documents: int | None = bounded(None, ge=1, off="null reads all documents")


@dataclasses.dataclass
class DownloadConfig(DatasetConfig):
    """A text fetched once into the cache, or read from `path`; either way it must have this sha256.

    sha256 null takes whatever comes, for a file that is issued anew now and then; the run still records what it read.
    """

    name: str = "download"
    url: str = MISSING
    sha256: str | None = MISSING
    path: str | None = path_field(None)
    # Keeps what stands between Project Gutenberg's "*** START OF" and "*** END OF" lines.
    strip_gutenberg: bool = False


declare(DATASETS, PythonDocsConfig, PythonStdlibConfig, TextConfig, JsonlConfig, HuggingFaceConfig, DownloadConfig)
