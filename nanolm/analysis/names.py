"""Short unique names of settings and run directories."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Map each dotted key to its shortest unique ending, such as lr."""
    keys = list(keys)
    return dict(zip(keys, unique_endings([key.split(".") for key in keys], "."), strict=True))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest unique ending of each path."""
    return unique_endings([Path(os.path.realpath(path)).parts for path in paths], "/")


def unique_endings(parts: Sequence[Sequence[str]], separator: str) -> list[str]:
    """The shortest unique ending of each sequence of parts, joined by a separator."""
    lengths = [len(some) for some in parts]
    # Sequences with the same last n parts, which are split by the part before these.
    groups, n = [list(range(len(parts)))], 0
    while groups:
        n += 1
        finer: list[list[int]] = []
        for group in groups:
            by_part: dict[str, list[int]] = {}
            for at in group:
                if n <= len(parts[at]):
                    by_part.setdefault(parts[at][-n], []).append(at)
            for same in by_part.values():
                if len(same) == 1:
                    lengths[same[0]] = n
                else:
                    finer.append(same)
        groups = finer
    return [separator.join(some[-n:]).replace("//", "/") for some, n in zip(parts, lengths, strict=True)]
