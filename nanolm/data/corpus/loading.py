"""Loading of a corpus: its documents are counted, fingerprinted and split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from nanolm.config.dataset import Bom, DatasetConfig, FilesConfig, Newlines, Nul, SplitBy
from nanolm.data.corpus.exclusions import Identity
from nanolm.data.corpus.paths import find_files
from nanolm.data.corpus.reading import Part, is_nul_heavy, nul_error
from nanolm.data.corpus.splits import Piece, held_out_sizes, shares_of, sources_of, split_pieces
from nanolm.errors import DataError, NanolmError, raise_all
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
        is_partly_scored: whether some of the text is not scored.
    """

    config: DatasetConfig
    splits: tuple[str, ...]
    fingerprint: str
    n_documents: dict[str, int]
    n_characters: dict[str, int]
    n_lines: dict[str, int]
    notes: tuple[str, ...] = ()
    is_partly_scored: bool = False

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

    def scored_texts(self, split: str) -> Iterator[str]:
        """Yield the scored pieces of a split in order: all of its text, unless the dataset has prompts."""
        return (piece.text for piece in self.pieces() if piece.split == split and piece.scored)

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
    sizes: dict[str, _Size] = {}
    problems: list[NanolmError] = []
    for source, source_config in sources_of(config).items():
        try:
            sizes[source] = _measure(digest, source, source_config)
        except DataError as error:
            problems.append(error)
            # Another download may take minutes to fail.
            if not isinstance(config, FilesConfig):
                break
    raise_all(problems)
    splits = tuple(split for split in ("train", "val", "test") if split in {**shares_of(config), **sizes})
    corpus = Corpus(
        config,
        splits,
        digest.hexdigest(),
        n_documents={source: size.documents for source, size in sizes.items()},
        n_characters={source: size.characters for source, size in sizes.items()},
        n_lines={source: size.lines for source, size in sizes.items()},
        notes=notes,
        is_partly_scored=any(size.is_partly_scored for size in sizes.values()),
    )
    if config.split_by is not SplitBy.fraction:
        held_out_sizes(config, corpus.n_units)
    return corpus


class _Size(NamedTuple):
    documents: int
    characters: int
    lines: int
    is_partly_scored: bool


def _measure(digest: hashlib._Hash, source: str, config: DatasetConfig) -> _Size:
    """Count what the text of a source has, and add it to a digest."""
    is_blank, is_partly_scored = True, False
    documents = characters = line_ends = 0
    last = ""
    for text, ends, scored in _hash_documents(digest, source, config):
        documents += ends
        characters += len(text)
        line_ends += text.count("\n")
        is_blank = is_blank and not text.strip()
        is_partly_scored |= not scored
        last = text
    if is_blank:
        where = getattr(config, "path", None) or f"dataset {config.name}"
        raise DataError(
            f"the {source} text is empty" if source != "train" else "the text is empty",
            where=str(where),
            hint="choose a text with words in it",
        )
    return _Size(documents, characters, line_ends + (not last.endswith("\n")), is_partly_scored)


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
        text, ends, scored = document if isinstance(document, Part) else Part(document)
        if begins and config.bom is Bom.strip:
            text = text.removeprefix("\ufeff")
        if config.newlines is Newlines.normalize and "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text or not begins:
            if config.nul is Nul.refuse and isinstance(document, str) and is_nul_heavy(text):
                where = f"dataset {config.name}, a document that begins with {text[:40]!r}"
                raise nul_error(text, "a document does not look like text", where, "correct or remove it")
            yield Part(text, ends, scored)
            begins = ends


def _join_documents(parts: Iterator[Part]) -> Iterator[Part]:
    """Append a line end to every document but the last.

    It is scored, unless the document has parts that are not: there it is a part of its own.
    """
    previous: Part | None = None
    is_scored = True
    for part in parts:
        if previous is not None:
            is_scored = is_scored and previous.scored
            if previous.ends and is_scored:
                yield Part(previous.text + "\n")
            elif previous.ends:
                yield previous._replace(ends=False)
                yield Part("\n", scored=False)
                is_scored = True
            else:
                yield previous
        previous = part
    if previous is not None:
        yield previous


def _hash_documents(digest: hashlib._Hash, source: str, config: DatasetConfig) -> Iterator[Part]:
    """Yield the text of a source while adding the SHA-256 of each document, however it is cut, to a digest.

    The lengths of the parts are added only for a document of which some are not scored.
    """
    digest.update(source.encode())
    number, document, spans = 1, hashlib.sha256(), list[tuple[int, bool]]()
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
        spans.append((len(part.text), part.scored))
        if part.ends:
            digest.update(document.digest())
            if not all(scored for _, scored in spans):
                digest.update(repr(spans).encode())
            number, document, spans = number + 1, hashlib.sha256(), []
        yield part
