"""What is held out of a text for validation and test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nanolm.config.dataset import DatasetConfig, SplitBy
from nanolm.data.corpus.reading import Part
from nanolm.data.permutation import mix, permute
from nanolm.errors import DataError

# Documents whose split is drawn at once.
DRAWN_AT_ONCE = 2**16


class Piece(NamedTuple):
    """A stretch of a split.

    Attributes:
        split: train, val or test.
        text: as it stands in the split, line ends between documents included.
        begins: whether a document (or, split by line, a line) begins with it.
    """

    split: str
    text: str
    begins: bool


def split_settings(config: DatasetConfig) -> dict[str, Any]:
    """What decides the splits of a given text, as plain values."""
    return {
        "shares": shares_of(config, "train"),
        "split_by": config.split_by.name,
        "split_seed": None if config.split_by is SplitBy.fraction else config.split_seed,
    }


def sources_of(config: DatasetConfig) -> dict[str, DatasetConfig]:
    """The settings that each text is read with: the one that is split, and the files that are val or test as such."""
    sources = {"train": config}
    for split in ("val", "test"):
        if path := getattr(config, f"{split}_path", None):
            sources[split] = dataclasses.replace(config, path=path)  # type: ignore[call-arg]
        elif name := getattr(config, f"{split}_split", None):
            sources[split] = dataclasses.replace(config, train_split=name)  # type: ignore[call-arg]
    return sources


def shares_of(config: DatasetConfig, source: str) -> dict[str, float]:
    """What part of a source goes to each split."""
    if source != "train":
        return {source: 1.0}
    own = sources_of(config)
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction and split not in own}
    return {"train": 1 - fractions.get("val", 0.0) - fractions.get("test", 0.0), **fractions}


def split_pieces(
    config: DatasetConfig, source: str, parts: Iterator[Part], n_characters: int, n_lines: int, n_documents: int
) -> Iterator[Piece]:
    """Assign the text of a source to splits.

    Args:
        config: settings of the dataset.
        source: train, or val or test where they have text of their own.
        parts: the text of the source.
        n_characters: length of the source.
        n_lines: lines of the source.
        n_documents: documents of the source.

    Returns:
        The pieces of all splits of the source, in the order of the text.
    """
    shares = shares_of(config, source)
    if source != "train" or len(shares) == 1:
        return _whole(source, parts)
    if config.split_by is SplitBy.fraction:
        return _by_fraction(parts, shares, n_characters)
    if config.split_by is SplitBy.line:
        return _by_line(parts, _drawn(shares, n_lines, config.split_seed, "lines"))
    return _by_document(parts, _drawn(shares, n_documents, config.split_seed, "documents"))


def _whole(split: str, parts: Iterator[Part]) -> Iterator[Piece]:
    begins = True
    for part in parts:
        yield Piece(split, part.text, begins)
        begins = part.ends


def _by_fraction(parts: Iterator[Part], shares: dict[str, float], n_characters: int) -> Iterator[Piece]:
    """Consecutive stretches of the text, measured in characters."""
    test = shares.get("test", 0.0)
    ends_at = {
        "train": int(n_characters * (1 - shares.get("val", 0.0) - test)),
        "val": int(n_characters * (1 - test)),
        "test": n_characters,
    }
    cuts = [(split, ends_at[split] if split != list(shares)[-1] else n_characters) for split in shares]
    position, begins = 0, True
    for text, ends in parts:
        while text:
            split, end = cuts[0]
            if position == end and len(cuts) > 1:
                cuts.pop(0)
                begins = True
                continue
            taken = text[: end - position]
            yield Piece(split, taken, begins)
            position += len(taken)
            text = text[len(taken) :]
            begins = False
        begins = begins or ends


def _by_document(parts: Iterator[Part], splits: Iterator[str]) -> Iterator[Piece]:
    begins, split = True, ""
    for text, ends in parts:
        if begins:
            split = next(splits)
        yield Piece(split, text, begins)
        begins = ends


def _by_line(parts: Iterator[Part], splits: Iterator[str]) -> Iterator[Piece]:
    """Lines of a part that fall to the same split come as one piece, each with its line end."""
    unfinished = ""
    for part in parts:
        *lines, unfinished = (unfinished + part.text).split("\n")
        gathered: dict[str, list[str]] = {}
        for line in lines:
            gathered.setdefault(next(splits), []).append(line)
        for split, inside in gathered.items():
            yield Piece(split, "\n".join(inside) + "\n", True)
    if unfinished:
        yield Piece(next(splits), unfinished, True)


def _drawn(shares: dict[str, float], n: int, seed: int, kind: str) -> Iterator[str]:
    """The split of each document or line in turn: exact numbers of them, drawn without replacement."""
    sizes = held_out(shares, n, kind)
    n_val, n_held_out = sizes.get("val", 0), sum(sizes.values())
    for start in range(0, n, DRAWN_AT_ONCE):
        places = permute(np.arange(start, min(start + DRAWN_AT_ONCE, n)), n, mix(seed))
        for place in places.tolist():
            yield "val" if place < n_val else "test" if place < n_held_out else "train"


def held_out(shares: dict[str, float], n: int, kind: str) -> dict[str, int]:
    """How many documents or lines each held-out split has: its share, and at least one.

    Raises:
        DataError: none is left to train on.
    """
    sizes = {split: max(1, round(n * share)) for split, share in shares.items() if split != "train"}
    if sum(sizes.values()) >= n:
        raise DataError(
            f"the text has {n:,} {kind}, and the splits {', '.join(shares)} need at least {len(shares)}",
            where="dataset.split_by",
            hint="dataset.split_by=fraction cuts a text anywhere",
        )
    return sizes
