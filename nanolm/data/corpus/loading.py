"""Loading of a corpus: its documents are counted, fingerprinted and split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanolm.config.dataset import Bom, DatasetConfig, FilesConfig, Newlines, Nul, SplitBy
from nanolm.data.corpus.exclusions import Identity
from nanolm.data.corpus.paths import find_files
from nanolm.data.corpus.reading import Part, is_nul_heavy, nul_error
from nanolm.data.corpus.splits import Piece, held_out_sizes, shares_of, sources_of, split_pieces
from nanolm.errors import DataError
from nanolm.registry import DATASETS


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text and its splits, read again in every pass.

    Attributes:
        config: settings of the dataset.
        splits: train and val, and test if configured.
        fingerprint: SHA-256 over the SHA-256 of each document, in order.
        n_documents: by source: train, and val and test if they have files of their own.
        n_characters: by source, line ends between documents included.
        n_lines: by source.
        notes: messages for the user, one line each, such as which folders were skipped.
    """

    config: DatasetConfig
    splits: tuple[str, ...]
    fingerprint: str
    n_documents: dict[str, int]
    n_characters: dict[str, int]
    n_lines: dict[str, int]
    notes: tuple[str, ...] = ()

    @property
    def n_units(self) -> int:
        """What dataset.split_by divides: the number of characters, documents or lines of the train source."""
        counts = {
            SplitBy.fraction: self.n_characters,
            SplitBy.document: self.n_documents,
            SplitBy.line: self.n_lines,
        }
        return counts[self.config.split_by]["train"]

    def documents(self, split: str) -> Iterator[str]:
        """Yield the documents of a split in order, long ones in parts; joined, they are the text of the split."""
        return (piece.text for piece in self.pieces() if piece.split == split)

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of all splits in one pass over the text.

        Raises:
            DataError: the text has changed since the corpus was loaded.
        """
        digest = hashlib.sha256()
        for source, config in sources_of(self.config).items():
            parts = _hash_documents(digest, source, config)
            yield from (piece for piece in split_pieces(self.config, source, parts, self.n_units) if piece.text)
        if digest.hexdigest() != self.fingerprint:
            raise DataError(
                "the text changed while it was being read",
                where=f"dataset {self.config.name}",
                hint="run the command again when no process writes to it",
            )


def load(config: DatasetConfig) -> Corpus:
    """Read the configured text once, to count and fingerprint it.

    Raises:
        DataError: the text is missing, empty, not UTF-8 or damaged, has too few documents to split, or cannot be
            downloaded.
    """
    notes = _notes(config)
    digest = hashlib.sha256()
    n_documents, n_characters, n_lines = {}, {}, {}
    for source, source_config in sources_of(config).items():
        is_blank = True
        documents = characters = line_ends = 0
        last = ""
        for text, ends in _hash_documents(digest, source, source_config):
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
                hint="choose a text with words in it",
            )
        n_documents[source] = documents
        n_characters[source] = characters
        n_lines[source] = line_ends + (not last.endswith("\n"))
    splits = tuple(split for split in ("train", "val", "test") if split in {**shares_of(config), **n_documents})
    corpus = Corpus(config, splits, digest.hexdigest(), n_documents, n_characters, n_lines, notes)
    if config.split_by is not SplitBy.fraction:
        held_out_sizes(config, corpus.n_units)
    return corpus


def _notes(config: DatasetConfig) -> tuple[str, ...]:
    """Describe what was skipped below the paths of a dataset, and which files are in several splits.

    Raises:
        DataError: a path cannot be read.
    """
    notes = []
    splits: dict[Identity, list[tuple[str, Path]]] = {}
    for source, source_config in sources_of(config).items():
        if isinstance(source_config, FilesConfig):
            setting = "dataset.path" if source == "train" else f"dataset.{source}_path"
            found = find_files(source_config.path, setting)
            notes += [f"skipped below {setting}: {message}" for message in found.skipped]
            for path, identity in found.files.items():
                splits.setdefault(identity, []).append((source, path))
    shared: dict[str, list[Path]] = {}
    for names in splits.values():
        if len(names) > 1:
            shared.setdefault(" and ".join(source for source, _ in names), []).append(names[0][1])
    for sources, paths in shared.items():
        shown = f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}"
        notes.append(f"warning: {sources} read the same files, so their losses are not comparable: {shown}")
    return tuple(notes)


def read_documents(config: DatasetConfig) -> Iterator[Part]:
    """Yield the documents of a source, with line ends and byte order marks treated as configured."""
    documents: str | Iterable[str | Part] = DATASETS[config.name](config)
    begins = True
    for document in [documents] if isinstance(documents, str) else documents:
        text, ends = document if isinstance(document, Part) else Part(document)
        if begins and config.bom is Bom.strip:
            text = text.removeprefix("\ufeff")
        if config.newlines is Newlines.normalize and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text or not begins:
            if config.nul is Nul.refuse and isinstance(document, str) and is_nul_heavy(text):
                where = f"dataset {config.name}, a document that begins with {text[:40]!r}"
                raise nul_error(text, "a document does not look like text", where, "correct or remove it")
            yield Part(text, ends)
            begins = ends


def _join_documents(parts: Iterator[Part]) -> Iterator[Part]:
    """Append a line end to every document but the last."""
    previous: Part | None = None
    for part in parts:
        if previous is not None:
            yield Part(previous.text + "\n", True) if previous.ends else previous
        previous = part
    if previous is not None:
        yield previous


def _hash_documents(digest: hashlib._Hash, source: str, config: DatasetConfig) -> Iterator[Part]:
    """Yield the text of a source while adding the SHA-256 of each document, however it is cut, to a digest."""
    digest.update(source.encode())
    number, document = 1, hashlib.sha256()
    for part in _join_documents(read_documents(config)):
        try:
            document.update(part.text.encode())
        except UnicodeEncodeError as error:
            raise DataError(
                f"U+{ord(part.text[error.start]):04X} is half a character (a lone surrogate), which UTF-8 cannot "
                "represent",
                where=f"document {number} of the {source} text, at {part.text[:40]!r}",
                hint="remove it",
            ) from error
        if part.ends:
            digest.update(document.digest())
            number, document = number + 1, hashlib.sha256()
        yield part
