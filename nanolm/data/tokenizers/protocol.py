"""What every tokenizer does, how it is stored, and what they share in checking what they are given."""

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

_NEEDED = ("vocab_size", "encode", "decode", "count_bytes", "to_json")


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does.

    A plugin's may leave out the last two attributes; `fit` and `from_file` then set them to False and to none.

    Attributes:
        vocab_size: ids lie in [0, vocab_size).
        lossless: whether decode(encode(text)) == text for every text that encodes.
        special_tokens: the ids that stand for no text of the corpus, by their names.
    """

    vocab_size: int
    lossless: bool
    special_tokens: dict[str, int]

    @classmethod
    def fit(cls, texts: Iterable[str], config: Any) -> Self:
        """The tokenizer of a corpus, which comes in pieces."""

    def encode(self, text: str) -> np.ndarray:
        """Ids, one-dimensional, in the smallest unsigned integers that hold the vocabulary.

        The name of a special token in the text is ordinary text.

        Raises:
            TokenizerError: the text holds something that the vocabulary lacks, or half a character.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """

    def count_bytes(self, ids: np.ndarray) -> int:
        """How many bytes of UTF-8 the ids stand for; where the tokenizer is not lossless, as best as can be told."""

    def to_json(self) -> dict[str, Any]:
        """All that it takes to make it again, as plain JSON values."""

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """The tokenizer that `to_json` described.

        Raises:
            TokenizerError: the description is not one of this kind.
        """


def fit(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that the settings name, fitted to the pieces of a corpus.

    Raises:
        TokenizerError: it cannot be fitted, or is a plugin's and lacks a part of the protocol.
    """
    kind = TOKENIZERS[config.name]
    _require(kind, config.name, ("fit", "from_json"))
    return _completed(kind.fit(texts, config), config.name)


def to_text(name: str, tokenizer: Tokenizer) -> str:
    """tokenizer.json: the short name and the tokenizer's own description."""
    return dump_json({"name": name, **tokenizer.to_json()}, ensure_ascii=False, indent=1) + "\n"


def from_file(path: Path) -> Tokenizer:
    """Reads a tokenizer.json.

    Raises:
        TokenizerError: it is missing, is not JSON, or does not describe a tokenizer.
    """
    hint = "take tokenizer.json from a copy of the run"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("name"), str):
            raise TokenizerError("not a tokenizer: it is no JSON object with a name", where=str(path), hint=hint)
        name = state.pop("name")
        kind = TOKENIZERS[name]
        _require(kind, name, ("from_json",))
        return _completed(kind.from_json(state), name)
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
    """sha256 of the tokenizer's description: equal for tokenizers that give equal ids."""
    canonical = dump_json({"name": name, **tokenizer.to_json()}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def smallest_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest unsigned integers that hold every id of a vocabulary."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


def utf8(text: str) -> bytes:
    """The text in UTF-8.

    Raises:
        TokenizerError: the text has a lone surrogate, which UTF-8 has no bytes for.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"U+{ord(text[error.start]):04X} is half a character (a lone surrogate)",
            where=f"character {error.start} of the text",
            hint="leave it out",
        ) from error


def checked(ids: Iterable[int], vocab_size: int) -> np.ndarray:
    """The ids, one-dimensional, in 64 bits.

    Raises:
        TokenizerError: one of them is outside the vocabulary.
    """
    array = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
    outside = array[(array < 0) | (array >= vocab_size)]
    if outside.size:
        raise TokenizerError(f"there is no token {outside[0]}: the vocabulary has {vocab_size:,}")
    return array


def entry(state: dict[str, Any], key: str, kind: type[Value]) -> Value:
    """One entry of a tokenizer's description.

    Raises:
        TokenizerError: it is missing or of another type.
    """
    value = state.get(key)
    # bool is an int to Python, and not to a reader of JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        found = f"{key!r} is missing" if key not in state else f"{key!r} is {_shown(value)}, not a {kind.__name__}"
        raise TokenizerError(f"not a tokenizer of this kind: {found}", where="tokenizer.json")
    return value


def strings(state: dict[str, Any], key: str) -> list[str]:
    """One entry of a tokenizer's description that lists strings, each of them once.

    Raises:
        TokenizerError: it is missing, holds something else, or a string twice.
    """
    values = entry(state, key, list)
    wrong = next((value for value in values if not isinstance(value, str)), None)
    if wrong is not None or any(value is None for value in values):
        raise TokenizerError(f"{key!r} must list strings, and holds {_shown(wrong)}", where="tokenizer.json")
    require_distinct(values, where="tokenizer.json")
    return values


def require_distinct(tokens: Sequence[str], where: str) -> None:
    """Refuses a vocabulary in which two ids stand for the same token.

    Raises:
        TokenizerError: with the first token that is there twice.
    """
    if len(set(tokens)) == len(tokens):
        return
    seen: set[str] = set()
    for token in tokens:
        if token in seen:
            raise TokenizerError(f"the token {token!r} is there twice", where=where)
        seen.add(token)


def _require(thing: object, name: str, members: Iterable[str]) -> None:
    lacking = [member for member in members if not hasattr(thing, member)]
    if lacking:
        raise TokenizerError(
            f"the tokenizer {name!r} has no {', '.join(lacking)}",
            where=getattr(thing, "__module__", ""),
            hint="nanolm.data.tokenizers.Tokenizer says what each must do",
        )


def _completed(tokenizer: Any, name: str) -> Tokenizer:
    _require(tokenizer, name, _NEEDED)
    for attribute, value in (("lossless", False), ("special_tokens", {})):
        if not hasattr(tokenizer, attribute):
            setattr(tokenizer, attribute, value)
    return tokenizer


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
