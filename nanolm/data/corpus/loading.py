"""A corpus: the documents of a dataset, counted, fingerprinted and split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanolm.config.dataset import Bom, DatasetConfig, JsonlConfig, Newlines, Nul, SplitBy, TextConfig
from nanolm.data.corpus.exclusions import Identity
from nanolm.data.corpus.paths import find_files
from nanolm.data.corpus.reading import Part, is_nul_heavy, nul_error
from nanolm.data.corpus.splits import Piece, held_out, shares_of, sources_of, split_pieces
from nanolm.errors import DataError
from nanolm.registry import DATASETS


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
        notes: what a user should know of the text, one line each: what was left out, and files of several splits.
    """

    config: DatasetConfig
    splits: tuple[str, ...]
    fingerprint: str
    n_documents: dict[str, int]
    n_characters: dict[str, int]
    n_lines: dict[str, int]
    notes: tuple[str, ...] = ()

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split in order, a long one in parts cut at line ends; joined they are its text."""
        return (piece.text for piece in self.pieces() if piece.split == split)

    def pieces(self) -> Iterator[Piece]:
        """One pass over all splits, each in its order.

        Raises:
            DataError: the text is not what it was when the corpus was loaded.
        """
        digest = _Digest()
        for source, config in sources_of(self.config).items():
            parts = digest.of(source, _below_each_other(read_documents(config)))
            for piece in split_pieces(
                self.config, source, parts, self.n_characters[source], self.n_lines[source], self.n_documents[source]
            ):
                if piece.text:
                    yield piece
        if digest.hexdigest() != self.fingerprint:
            raise DataError(
                "the text changed while it was being read",
                where=f"dataset {self.config.name}",
                hint="run the command again when nothing writes to it",
            )


def load(config: DatasetConfig) -> Corpus:
    """Reads the text that the settings name once, to count and fingerprint it.

    Raises:
        DataError: the text is missing, empty, not UTF-8, damaged, has too few documents to split, or cannot be
            fetched.
    """
    notes = _notes(config)
    digest = _Digest()
    n_documents, n_characters, n_lines = {}, {}, {}
    for source, source_config in sources_of(config).items():
        is_blank = True
        documents = characters = line_ends = 0
        last = ""
        for text, ends in digest.of(source, _below_each_other(read_documents(source_config))):
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
                hint="name a text with words in it",
            )
        n_documents[source] = documents
        n_characters[source] = characters
        n_lines[source] = line_ends + (not last.endswith("\n"))
    shares = shares_of(config, "train")
    kind = {SplitBy.document: "documents", SplitBy.line: "lines"}.get(config.split_by)
    if kind and len(shares) > 1:
        held_out(shares, n_documents["train"] if kind == "documents" else n_lines["train"], kind)
    own = [source for source in n_documents if source != "train"]
    splits = tuple(split for split in ("train", "val", "test") if split in shares or split in own)
    return Corpus(config, splits, digest.hexdigest(), n_documents, n_characters, n_lines, notes)


def _notes(config: DatasetConfig) -> tuple[str, ...]:
    """What was left out of the paths of a dataset, and which files stand in several of its splits.

    Raises:
        DataError: a path cannot be read.
    """
    notes = []
    splits: dict[Identity, list[tuple[str, Path]]] = {}
    for source, source_config in sources_of(config).items():
        if isinstance(source_config, TextConfig | JsonlConfig):
            setting = "dataset.path" if source == "train" else f"dataset.{source}_path"
            found = find_files(source_config.path, setting)
            notes += [f"left out of {setting}: {message}" for message in found.left_out]
            for path, identity in zip(found.files, found.identities, strict=True):
                splits.setdefault(identity, []).append((source, path))
    shared: dict[str, list[Path]] = {}
    for names in splits.values():
        if len(names) > 1:
            shared.setdefault(" and ".join(source for source, _ in names), []).append(names[0][1])
    for sources, paths in shared.items():
        shown = f"{paths[0]}{f' and {len(paths) - 1:,} more' if len(paths) > 1 else ''}"
        notes.append(f"warning: {sources} read the same files, so that their losses do not compare: {shown}")
    return tuple(notes)


def read_documents(config: DatasetConfig) -> Iterator[Part]:
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
            if config.nul is Nul.refuse and isinstance(document, str) and is_nul_heavy(text):
                where = f"dataset {config.name}, a document that begins {text[:40]!r}"
                raise nul_error(text, "a document is hardly text", where, "correct or remove it")
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
                    hint="leave it out",
                ) from error
            if part.ends:
                self._sha256.update(document.digest())
                number, document = number + 1, hashlib.sha256()
            yield part

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()
