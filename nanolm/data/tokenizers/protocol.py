"""The protocol of tokenizers, with their files and the checks that they share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

import numpy as np

from nanolm.config.tokenizer import TokenizerConfig
from nanolm.errors import NanolmError, TokenizerError
from nanolm.json_text import dump_json
from nanolm.registry import TOKENIZERS

Value = TypeVar("Value")

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
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("name"), str):
            raise TokenizerError("not a tokenizer: expected a JSON object with a name", where=str(path), hint=hint)
        name = state.pop("name")
        kind = TOKENIZERS[name]
        _require_members(kind, name, ("from_json",))
        return _with_defaults(kind.from_json(state), name)
    except TokenizerError as error:
        raise TokenizerError(error.found, where=str(path), hint=error.hint or hint) from error
    except NanolmError:
        raise
    except FileNotFoundError as error:
        raise TokenizerError(f"{path.name} is missing", where=str(path), hint=hint) from error
    except OSError as error:
        raise TokenizerError(
            f"{path.name} cannot be read: {error.strerror or error}", where=str(path), hint=hint
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"not a tokenizer: it is not JSON: {error}", where=str(path), hint=hint) from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"not a tokenizer: {error!r}", where=str(path), hint=hint) from error


def fingerprint(name: str, tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer's description; tokenizers with the same fingerprint give the same ids."""
    canonical = dump_json({"name": name, **tokenizer.to_json()}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest unsigned integer dtype that holds every id of a vocabulary."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


def encode_utf8(text: str) -> bytes:
    """Encode text as UTF-8.

    Raises:
        TokenizerError: the text has a lone surrogate, which UTF-8 cannot represent.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"U+{ord(text[error.start]):04X} is half a character (a lone surrogate)",
            where=f"character {error.start} of the text",
            hint="remove it",
        ) from error


def check_ids(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """Return ids as a one-dimensional int64 array.

    Raises:
        TokenizerError: one of them is outside the vocabulary.
    """
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
    outside = array[(array < 0) | (array >= vocab_size)]
    if outside.size:
        raise TokenizerError(f"there is no token {outside[0]}: the vocabulary has {vocab_size:,}")
    return array


def check_vocab_size(vocab_size: int, special_tokens: Sequence[str], required: int) -> int:
    """Return how many tokens of a vocabulary are not special.

    Args:
        vocab_size: all tokens.
        special_tokens: names of the special tokens.
        required: how many other tokens there must be at least.

    Raises:
        TokenizerError: the vocabulary is too small, or a special token is listed twice.
    """
    require_distinct(special_tokens, where="tokenizer.special_tokens")
    if vocab_size - len(special_tokens) < required:
        raise TokenizerError(
            f"a vocabulary of {vocab_size:,} has no room for {required:,} required tokens "
            f"and {len(special_tokens)} special tokens",
            where="tokenizer.vocab_size, tokenizer.special_tokens",
            hint=f"use tokenizer.vocab_size={required + len(special_tokens)} or more",
        )
    return vocab_size - len(special_tokens)


def unseen_error(noun: str, unseen: Sequence[str], text: str, hint: str) -> TokenizerError:
    """Return the error for characters or words of a text that are not in the vocabulary."""
    plural = "s" if len(unseen) > 1 else ""
    more = ", ..." if len(unseen) > 10 else ""
    return TokenizerError(
        f"{len(unseen)} {noun}{plural} not in the tokenizer's vocabulary: {', '.join(unseen[:10])}{more}",
        where=f"a text of {len(text):,} characters",
        hint=hint,
    )


def read_text(path: Path) -> str:
    """Read a file of a tokenizer.

    Raises:
        TokenizerError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"cannot read the file: {error}", where=str(path)) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a tokenizer.

    Raises:
        TokenizerError: it cannot be read, or is something else.
    """
    content = read_text(path)
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"it is not JSON: {error}", where=str(path)) from error
    if not isinstance(state, dict):
        raise TokenizerError("it must be a JSON object", where=str(path))
    return state


def get_entry(state: dict[str, Any], key: str, kind: type[Value]) -> Value:
    """Return one entry of a tokenizer's description.

    Raises:
        TokenizerError: it is missing or of another type.
    """
    value = state.get(key)
    # A bool is an int in Python, but not in JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = f"{key!r} is missing" if key not in state else f"{key!r} is {_abbreviate(value)}, not a {kind.__name__}"
        raise TokenizerError(f"not a tokenizer of this kind: {found}", where="tokenizer.json")
    return value


def get_strings(state: dict[str, Any], key: str) -> list[str]:
    """Return one entry of a tokenizer's description that is a list of distinct strings.

    Raises:
        TokenizerError: it is missing, is something else, or has a string twice.
    """
    values = get_entry(state, key, list)
    for value in values:
        if not isinstance(value, str):
            found = f"{key!r} must be a list of strings, but has {_abbreviate(value)}"
            raise TokenizerError(found, where="tokenizer.json")
    require_distinct(values, where="tokenizer.json")
    return values


def require_distinct(tokens: Sequence[str], where: str) -> None:
    """Refuse a vocabulary that has a token twice.

    Raises:
        TokenizerError: it names the first such token.
    """
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise TokenizerError(f"the token {token!r} is there twice", where=where)
        seen.add(token)


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
    for attribute, default in (("lossless", False), ("special_tokens", {})):
        if not hasattr(tokenizer, attribute):
            setattr(tokenizer, attribute, default)
    return tokenizer


def _abbreviate(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
