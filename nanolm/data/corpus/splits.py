"""Division of a text into train, val and test splits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from nanolm.config.dataset import DatasetConfig, SplitBy
from nanolm.data.corpus.reading import Part
from nanolm.data.permutation import mix, permute
from nanolm.errors import DataError

# Documents or lines whose splits are drawn at once.
BLOCK = 2**16


class Piece(NamedTuple):
    """A piece of a split.

    Attributes:
        split: train, val or test.
        text: with the line ends between documents.
        begins: whether it is the beginning of a document (or of a line, for dataset.split_by=line).
        scored: as in Part.
    """

    split: str
    text: str
    begins: bool
    scored: bool = True


def split_settings(config: DatasetConfig) -> dict[str, Any]:
    """Return the settings that determine the splits of a text, as JSON values."""
    return {
        "shares": shares_of(config),
        "split_by": config.split_by.name,
        "split_seed": None if config.split_by is SplitBy.fraction else config.split_seed,
    }


def sources_of(config: DatasetConfig) -> dict[str, DatasetConfig]:
    """Return the settings of each source: the text that is split, and separate texts for val or test."""
    sources = {"train": config}
    for split in ("val", "test"):
        if path := getattr(config, f"{split}_path", None):
            sources[split] = dataclasses.replace(config, path=path)  # type: ignore[call-arg]
        elif name := getattr(config, f"{split}_split", None):
            sources[split] = dataclasses.replace(config, train_split=name)  # type: ignore[call-arg]
    return sources


def shares_of(config: DatasetConfig) -> dict[str, float]:
    """Return the fraction of the train source that goes to each split."""
    own = sources_of(config)
    fractions = {"val": config.val_fraction, "test": config.test_fraction}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction and split not in own}
    return {"train": 1 - fractions.get("val", 0.0) - fractions.get("test", 0.0), **fractions}


def split_pieces(config: DatasetConfig, source: str, parts: Iterator[Part], n_units: int) -> Iterator[Piece]:
    """Assign the text of a source to splits, in the order of the text.

    Args:
        config: settings of the dataset.
        source: train, or val or test if they have text of their own.
        parts: the text of the source.
        n_units: number of characters, lines or documents of the train source, as config.split_by says.
    """
    shares = shares_of(config)
    if source != "train" or len(shares) == 1:
        return _by_document(parts, itertools.repeat(source))
    if config.split_by is SplitBy.fraction:
        return _by_fraction(parts, shares, n_units)
    splits = _draw_splits(config, n_units)
    return _by_line(parts, splits) if config.split_by is SplitBy.line else _by_document(parts, splits)


def _by_fraction(parts: Iterator[Part], shares: dict[str, float], n_characters: int) -> Iterator[Piece]:
    """Cut the text into consecutive splits by number of characters."""
    test = shares.get("test", 0.0)
    ends_at = {
        "train": int(n_characters * (1 - shares.get("val", 0.0) - test)),
        "val": int(n_characters * (1 - test)),
        "test": n_characters,
    }
    cuts = [(split, ends_at[split] if split != list(shares)[-1] else n_characters) for split in shares]
    position, begins = 0, True
    for text, ends, scored in parts:
        while text:
            split, end = cuts[0]
            if position == end and len(cuts) > 1:
                cuts.pop(0)
                begins = True
                continue
            taken = text[: end - position]
            yield Piece(split, taken, begins, scored)
            position += len(taken)
            text = text[len(taken) :]
            begins = False
        begins = begins or ends


def _by_document(parts: Iterator[Part], splits: Iterator[str]) -> Iterator[Piece]:
    begins, split = True, ""
    for text, ends, scored in parts:
        if begins:
            split = next(splits)
        yield Piece(split, text, begins, scored)
        begins = ends


def _by_line(parts: Iterator[Part], splits: Iterator[str]) -> Iterator[Piece]:
    """Assign each line to a split; the lines of a part in the same split are one piece."""
    unfinished = ""
    for part in parts:
        *lines, unfinished = (unfinished + part.text).split("\n")
        by_split: dict[str, list[str]] = {}
        for line in lines:
            by_split.setdefault(next(splits), []).append(line)
        for split, texts in by_split.items():
            yield Piece(split, "\n".join(texts) + "\n", True)
    if unfinished:
        yield Piece(next(splits), unfinished, True)


def _draw_splits(config: DatasetConfig, n: int) -> Iterator[str]:
    """Yield the split of each document or line, drawn without replacement, so that sizes are exact."""
    sizes = held_out_sizes(config, n)
    n_val, n_held_out = sizes.get("val", 0), sum(sizes.values())
    for start in range(0, n, BLOCK):
        positions = permute(np.arange(start, min(start + BLOCK, n)), n, mix(config.split_seed))
        for position in positions.tolist():
            yield "val" if position < n_val else "test" if position < n_held_out else "train"


def held_out_sizes(config: DatasetConfig, n: int) -> dict[str, int]:
    """Return the number of documents or lines of each held-out split: its share of n, but at least one.

    Raises:
        DataError: none would be left to train on.
    """
    shares = shares_of(config)
    sizes = {split: max(1, round(n * share)) for split, share in shares.items() if split != "train"}
    if sum(sizes.values()) >= n:
        raise DataError(
            f"the text has {n:,} {config.split_by.name}s, "
            f"and the splits {', '.join(shares)} need at least {len(shares)}",
            where="dataset.split_by",
            hint="use dataset.split_by=fraction, which can cut a text anywhere",
        )
    return sizes
