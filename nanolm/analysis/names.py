"""Short unique names of settings and run directories."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Map each dotted key to its shortest unique ending, such as lr."""
    keys = list(keys)
    return dict(zip(keys, _unique_endings([key.split(".") for key in keys], "."), strict=True))


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest unique ending of each path."""
    return _unique_endings([list(Path(os.path.realpath(path)).parts) for path in paths], "/")


def _unique_endings(parts: Sequence[Sequence[str]], separator: str) -> list[str]:
    longest = max(map(len, parts), default=0)
    n_uses = Counter(tuple(some[-n:]) for some in parts for n in range(1, longest + 1) if n <= len(some))
    endings = []
    for some in parts:
        n = next((n for n in range(1, len(some)) if n_uses[tuple(some[-n:])] == 1), len(some))
        endings.append(separator.join(some[-n:]).replace("//", "/"))
    return endings
