"""The protocol of tokenizers and their file, tokenizer.json."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from nanolm.config.tokenizer import TokenizerConfig
from nanolm.data.tokenizers.checks import MAX_VOCAB_SIZE, get_entry, read_json
from nanolm.data.tokenizers.huggingface import PretrainedTokenizer
from nanolm.errors import NanolmError, TokenizerError
from nanolm.json_text import dump_json
from nanolm.registry import TOKENIZERS

# Members that a plugin's tokenizer must have.
REQUIRED = ("vocab_size", "encode", "decode", "count_bytes", "to_json")


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        vocab_size: ids are in [0, vocab_size).
        lossless: whether decode(encode(text)) == text for every text that encodes; False if a plugin leaves it out.
        special_tokens: ids of tokens that represent no text of the corpus, by name; empty if a plugin leaves it out.
    """

    vocab_size: int
    lossless: bool
    special_tokens: dict[str, int]

    @classmethod
    def fit(cls, texts: Iterable[str], config: Any) -> Self:
        """Fit a tokenizer to a corpus, given in pieces."""

    def encode(self, text: str) -> np.ndarray:
        """Convert text to ids, one-dimensional, of the smallest unsigned dtype that holds the vocabulary.

        The name of a special token in the text is ordinary text.

        Raises:
            TokenizerError: the text has something that is not in the vocabulary, or a lone surrogate.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """

    def count_bytes(self, ids: np.ndarray) -> int:
        """Return the number of bytes of UTF-8 that the ids represent; an estimate if the tokenizer is lossy."""

    def to_json(self) -> dict[str, Any]:
        """Return everything that `from_json` needs, as JSON values."""

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """Make the tokenizer from the result of `to_json`.

        Raises:
            TokenizerError: it does not describe a tokenizer of this class.
        """


def fit(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Fit the configured tokenizer to the pieces of a corpus.

    Raises:
        TokenizerError: it cannot be fitted, or a plugin's tokenizer does not implement the protocol.
    """
    kind = TOKENIZERS[config.name]
    _require_members(kind, config.name, ("fit", "from_json"))
    return _with_defaults(kind.fit(texts, config), config.name)


def to_text(name: str, tokenizer: Tokenizer) -> str:
    """Return the content of tokenizer.json: the registered name and the tokenizer's own description."""
    return dump_json({"name": name, **tokenizer.to_json()}, ensure_ascii=False, indent=1) + "\n"


def from_file(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        TokenizerError: it is missing, is not JSON, or does not describe a tokenizer.
    """
    hint = "take tokenizer.json from a copy of the run"
    try:
        state = read_json(path, path.parent)
        name = get_entry(state, "name", str)
        del state["name"]
        kind = TOKENIZERS[name]
        _require_members(kind, name, ("from_json",))
        tokenizer = kind.from_json(state)
        if isinstance(tokenizer, PretrainedTokenizer):
            tokenizer.file = str(path)
        return _with_defaults(tokenizer, name)
    except TokenizerError as error:
        raise TokenizerError(error.found, where=str(path), hint=error.hint or hint) from error
    except NanolmError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"not a tokenizer: {error!r}", where=str(path), hint=hint) from error


def fingerprint(name: str, tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's description; tokenizers with the same fingerprint give the same ids."""
    canonical = dump_json({"name": name, **tokenizer.to_json()}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _require_members(thing: object, name: str, members: Iterable[str]) -> None:
    missing = [member for member in members if not hasattr(thing, member)]
    if missing:
        raise TokenizerError(
            f"the tokenizer {name!r} has no {', '.join(missing)}",
            where=getattr(thing, "__module__", ""),
            hint="implement the protocol nanolm.data.tokenizers.Tokenizer",
        )


def _with_defaults(tokenizer: Any, name: str) -> Tokenizer:
    _require_members(tokenizer, name, REQUIRED)
    if isinstance(tokenizer.vocab_size, int) and tokenizer.vocab_size > MAX_VOCAB_SIZE:
        raise TokenizerError(
            f"the vocabulary has {tokenizer.vocab_size:,} tokens, and at most {MAX_VOCAB_SIZE:,} are supported",
            hint="use a smaller tokenizer.max_size or tokenizer.vocab_size, or another tokenizer",
        )
    for attribute, default in (("lossless", False), ("special_tokens", {})):
        if not hasattr(tokenizer, attribute):
            setattr(tokenizer, attribute, default)
    return tokenizer
