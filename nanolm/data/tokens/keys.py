"""Keys of the token cache: hashes of everything that a fitted tokenizer or its tokens depend on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

from nanolm.config.fields import flat
from nanolm.config.run import Config
from nanolm.data import tokenizers
from nanolm.data.corpus import Corpus, split_settings
from nanolm.data.tokenizers import Tokenizer
from nanolm.files import user_path
from nanolm.json_text import dump_json
from nanolm.registry import TOKENIZERS

# Raised whenever the layout or the meaning of the cached files changes.
FORMAT = 3

LIBRARIES = ("tokenizers", "sentencepiece", "tiktoken", "torchtext", "spacy", "regex")


def tokenizer_key(corpus: Corpus, config: Config) -> dict[str, Any]:
    """Return what a fitted tokenizer depends on, as JSON values."""
    settings = flat(config.tokenizer)
    return {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        # The texts come split by split, and a tokenizer may depend on their order.
        "splits": split_settings(corpus.config),
        "settings": settings,
        "files": {key: file_hash(value) for key, value in settings.items()},
        "code": _code(TOKENIZERS[config.tokenizer.name]),
    }


def stream_key(corpus: Corpus, tokenizer: Tokenizer, config: Config) -> dict[str, Any]:
    """Return what the tokens of a corpus depend on, as JSON values."""
    sampling = config.trainer.sampling
    return {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "splits": split_settings(corpus.config),
        "tokenizer": tokenizers.fingerprint(config.tokenizer.name, tokenizer),
        "code": _code(type(tokenizer)),
        "rows": sampling.name if sampling.in_rows else None,
    }


def digest(key: dict[str, Any]) -> str:
    """Return a short hash of a key, for a file name."""
    return hashlib.sha256(dump_json(key, sort_keys=True).encode()).hexdigest()[:20]


def file_hash(value: Any) -> str | None:
    """Return a hash of the file or folder that a setting names; None if it names neither.

    For a folder, the names, sizes and modification times of its files are hashed.
    """
    if not isinstance(value, str) or not value:
        return None
    with contextlib.suppress(OSError):
        path = user_path(value)
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        if path.is_dir():
            inside = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(path.iterdir())]
            return hashlib.sha256(repr(inside).encode()).hexdigest()
    return None


@functools.cache
def _code(kind: type[Any]) -> dict[str, str]:
    """Return a hash of a tokenizer's source and the versions of the libraries that it may use."""
    versions = {}
    for package in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, TypeError):
        path = Path(inspect.getfile(kind))
        # A built-in tokenizer uses the modules next to it; a plugin may be in any folder, next to anything.
        sources = sorted(path.parent.glob("*.py")) if kind.__module__.startswith("nanolm.") else [path]
        versions["source"] = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return versions
