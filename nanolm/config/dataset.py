"""Datasets: the source of the text and its validation and test splits."""

from __future__ import annotations

import dataclasses
from functools import partial

from nanolm.config.fields import MISSING, Choice, Role, declare, setting
from nanolm.registry import DATASETS


class SplitBy(Choice):
    """Units of the validation and test splits."""

    fraction = "fraction", "The end of the text; the cut may go through a document."
    document = "document", "Whole documents, drawn at random."
    line = "line", "Single lines, drawn at random."


class Newlines(Choice):
    """Treatments of line ends."""

    keep = "keep", "Line ends are not changed."
    normalize = "normalize", "CRLF and lone CR become LF."


class Bom(Choice):
    """Treatments of a byte order mark (U+FEFF) at the start of a document."""

    keep = "keep", "It is a character of the text."
    strip = "strip", "It is removed."


class Nul(Choice):
    """Treatments of text in which more than 1% of the characters, and at least 4, are NUL (U+0000)."""

    refuse = "refuse", "Such text is an error: it is usually binary, or UTF-16 without a byte order mark."
    allow = "allow", "NUL is a character of the text."


@dataclasses.dataclass
class DatasetConfig:
    """Settings of every dataset."""

    name: str = MISSING
    val_fraction: float = setting(
        0.1,
        doc="Fraction of the text for validation, unless the dataset has its own validation split.",
        gt=0,
        lt=1,
        off="0.01 keeps it small; it cannot be disabled, since runs are judged by their validation loss",
    )
    test_fraction: float = setting(
        0.0, doc="Fraction of the text for a test split. 0: no test split.", ge=0, lt=1, off="0 keeps no test split"
    )
    split_by: SplitBy = setting(SplitBy.fraction, doc="What is held out for validation and test.")
    split_seed: int = setting(
        1337,
        doc="Seed of the random split. It is separate from `seed`, so that runs with different seeds are scored on the "
        "same text.",
        ge=0,
        lt=2**63,
    )
    newlines: Newlines = setting(Newlines.keep, doc="Line ends.")
    bom: Bom = setting(Bom.keep, doc="Byte order mark at the start of a document.")
    nul: Nul = setting(
        Nul.refuse, doc="Text with NUL characters: more than 1% of all, and at least 4.", role=Role.runtime
    )


@dataclasses.dataclass
class PythonDocsConfig(DatasetConfig):
    """The Python language reference that is part of every CPython installation."""

    name: str = "python_docs"


@dataclasses.dataclass
class PythonStdlibConfig(DatasetConfig):
    """The source code of the running CPython's standard library without its tests; each file is a document."""

    name: str = "python_stdlib"


# The location of a text is not part of the experiment: a run records the checksum of the text.
_path = partial(setting, role=Role.runtime, is_path=True)


@dataclasses.dataclass
class FilesConfig(DatasetConfig):
    """Settings of datasets in the user's files."""

    path: str = _path(doc="A file, a directory (every file in it) or a glob such as 'notes/**/*.md'.")
    val_path: str | None = _path(
        None, doc="Files, directory or glob of the validation split. null: a fraction of `path`."
    )
    test_path: str | None = _path(None, doc="Files, directory or glob of the test split. null: a fraction of `path`.")


@dataclasses.dataclass
class TextConfig(FilesConfig):
    """Text files; each file is a document."""

    name: str = "text"


@dataclasses.dataclass
class JsonlConfig(FilesConfig):
    """JSON Lines: one JSON object per line, each a document. Blank lines are skipped."""

    name: str = "jsonl"
    field: str = setting("text", doc="Key of the text in each object.")


# The part of a template that is replaced by the text of a message.
CONTENT = "{content}"


@dataclasses.dataclass
class TemplateConfig:
    """The text of each message of a conversation; {content} is replaced by the message."""

    system: str = setting(f"<|system|>{CONTENT}\n", doc="A system message. It is not scored.")
    user: str = setting(f"<|user|>{CONTENT}\n", doc="A user's message, or a prompt. It is not scored.")
    assistant: str = setting(
        f"<|assistant|>{CONTENT}<|end|>\n",
        doc="A response. The text before {content} is not scored. The text after it is scored, so that the model "
        "learns to end a response, and `nanolm generate` stops there.",
    )


@dataclasses.dataclass
class InstructionsConfig(FilesConfig):
    """Conversations in JSON Lines, of which only the responses are scored.

    Each line is a document: an object with a prompt and a response, or with a list of messages, each with a role
    (system, user or assistant) and a content. Blank lines are skipped.
    """

    name: str = "instructions"
    split_by: SplitBy = setting(SplitBy.document, doc="What is held out for validation and test.")
    prompt_field: str = setting("prompt", doc="Key of the prompt in each object.")
    response_field: str = setting("response", doc="Key of the response in each object.")
    messages_field: str = setting("messages", doc="Key of the list of messages in each object.")
    template: TemplateConfig = setting(default_factory=TemplateConfig, doc="Text of the messages.")


@dataclasses.dataclass
class HuggingFaceConfig(DatasetConfig):
    """A dataset of the Hugging Face Hub, or a local directory of parquet or JSON files."""

    name: str = "huggingface"
    path: str = _path(doc="Name on the Hub, or a local directory.")
    subset: str | None = setting(
        None, doc="Configuration of the dataset, such as wikitext-2-raw-v1. null: its only or default one."
    )
    field: str = setting("text", doc="Column of the text.")
    train_split: str = setting("train", doc="Name of the training split.")
    val_split: str | None = setting(None, doc="Name of the validation split. null: a fraction of `train_split`.")
    test_split: str | None = setting(None, doc="Name of the test split. null: a fraction of `train_split`.")
    streaming: bool = setting(
        True, doc="Read documents while they are downloaded; false downloads all into the cache of `datasets` first."
    )
    max_documents: int | None = setting(
        None, doc="Read only this many documents of each split. null: all.", ge=1, off="null reads all documents"
    )


@dataclasses.dataclass
class DownloadConfig(DatasetConfig):
    """A text that is downloaded once into the cache, or read from `path`."""

    name: str = "download"
    url: str = setting(doc="Address of the text.")
    sha256: str | None = setting(
        doc="Required SHA-256 of the file, in hexadecimal. null: any file; for files that are reissued from time to "
        "time. The run records the SHA-256 of the text that it read."
    )
    path: str | None = _path(None, doc="A local copy of the file. null: download it.")
    strip_gutenberg: bool = setting(
        False, doc="Keep only the text between Project Gutenberg's '*** START OF' and '*** END OF' lines."
    )


declare(DATASETS, DatasetConfig)
