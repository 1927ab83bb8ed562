"""Checks that tokenizers share, of settings, files, texts and ids."""

from __future__ import annotations

import os
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanolm.errors import TokenizerError
from nanolm.json_text import parse_json
from nanolm.untrusted import read_inside

Value = TypeVar("Value")

# The largest vocabularies in use have a million tokens.
MAX_VOCAB_SIZE = 2**22
# The largest files of such tokenizers have 35 MB.
MAX_FILE_BYTES = 200_000_000


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


def read_text(path: Path, folder: Path | None = None) -> str:
    """Read a file of a tokenizer.

    Args:
        folder: links may not lead out of it, as in a run; None: the user named the file.

    Raises:
        TokenizerError: it is missing, too large, cannot be read, or is not UTF-8.
    """
    try:
        real = Path(os.path.realpath(path)) if folder is None else path
        return read_inside(real, folder or real.parent, MAX_FILE_BYTES).decode("utf-8")
    except FileNotFoundError as error:
        raise TokenizerError(f"{path.name} is missing", where=str(path)) from error
    except OSError as error:
        raise TokenizerError(f"{path.name} cannot be read: {error.strerror or error}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"not a tokenizer: it is not UTF-8: {error}", where=str(path)) from error


def read_json(path: Path, folder: Path | None = None) -> dict[str, Any]:
    """Read a JSON object of a tokenizer; the arguments are those of `read_text`.

    Raises:
        TokenizerError: it cannot be read, or is something else.
    """
    content = read_text(path, folder)
    if content.count("[") + content.count("{") > 2 * MAX_VOCAB_SIZE:
        raise TokenizerError("not a tokenizer: it has too many lists and objects", where=str(path))
    try:
        state = parse_json(content)
    except ValueError as error:
        raise TokenizerError(f"not a tokenizer: it is not JSON: {error}", where=str(path)) from error
    if not isinstance(state, dict):
        raise TokenizerError("not a tokenizer: it is not a JSON object", where=str(path))
    return state


def get_entry(state: dict[str, Any], key: str, kind: type[Value]) -> Value:
    """Return one entry of a tokenizer's description.

    Raises:
        TokenizerError: it is missing or of another type.
    """
    value = state.get(key)
    # A bool is an int in Python, but not in JSON.
    if key not in state or not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        expected = getattr(kind, "__name__", kind)
        found = f"{key!r} is missing" if key not in state else f"{key!r} is {reprlib.repr(value)}, not a {expected}"
        raise TokenizerError(f"not a tokenizer of this kind: {found}")
    return value


def get_strings(state: dict[str, Any], key: str) -> list[str]:
    """Return one entry of a tokenizer's description that is a list of distinct strings.

    Raises:
        TokenizerError: it is missing, is something else, or has a string twice.
    """
    values = get_entry(state, key, list)
    if others := [value for value in values if not isinstance(value, str)]:
        raise TokenizerError(f"{key!r} must be a list of strings, but has {reprlib.repr(others[0])}")
    require_distinct(values)
    return values


def require_distinct(tokens: Sequence[str], where: str = "") -> None:
    """Refuse a vocabulary that has a token twice.

    Raises:
        TokenizerError: it names the first such token.
    """
    if repeated := [token for token, count in Counter(tokens).items() if count > 1]:
        raise TokenizerError(f"the token {repeated[0]!r} is there twice", where=where)
