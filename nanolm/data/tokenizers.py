"""Text to token ids and back. One small protocol; on disk a tokenizer is JSON, which executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from nanolm.config import ByteConfig, CharConfig, TokenizerConfig
from nanolm.errors import NanolmError, TokenizerError
from nanolm.registry import TOKENIZERS


@runtime_checkable
class Tokenizer(Protocol):
    """What every tokenizer does.

    Attributes:
        vocab_size: ids lie in [0, vocab_size).
        lossless: whether decode(encode(text)) == text for every text that encodes.
    """

    vocab_size: int
    lossless: bool

    @classmethod
    def fit(cls, texts: Iterable[str], config: Any) -> Self:
        """The tokenizer of a corpus, which comes in pieces."""

    def encode(self, text: str) -> np.ndarray:
        """Ids, one-dimensional, in the smallest unsigned integers that hold the vocabulary.

        Raises:
            TokenizerError: the text holds something that the vocabulary lacks.
        """

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""

    def count_bytes(self, ids: np.ndarray) -> int:
        """How many bytes of UTF-8 the ids stand for."""

    def to_json(self) -> dict[str, Any]:
        """All that it takes to make it again, as plain JSON values."""

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """The tokenizer that `to_json` described.

        Raises:
            TokenizerError: the description is not one of this kind.
        """


def fit(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that the settings name, fitted to the pieces of a corpus."""
    return TOKENIZERS[config.name].fit(texts, config)


def to_text(name: str, tokenizer: Tokenizer) -> str:
    """tokenizer.json: the short name and the tokenizer's own description."""
    return json.dumps({"name": name, **tokenizer.to_json()}, ensure_ascii=False, indent=1) + "\n"


def from_file(path: Path) -> Tokenizer:
    """Reads a tokenizer.json.

    Raises:
        TokenizerError: it is missing, is not JSON, or does not describe a tokenizer.
    """
    mend = "take tokenizer.json from a copy of the run"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        kind = TOKENIZERS[state.pop("name")]
        return kind.from_json(state)
    except NanolmError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(f"not a tokenizer: {error!r}", where=str(path), mend=mend) from error


def fingerprint(name: str, tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's description: equal for tokenizers that give equal ids."""
    canonical = json.dumps({"name": name, **tokenizer.to_json()}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def smallest_integers(vocab_size: int) -> np.dtype[Any]:
    """The narrowest unsigned integers that hold every id of a vocabulary."""
    return np.min_scalar_type(max(vocab_size - 1, 0))


@TOKENIZERS.register("char")
class CharTokenizer:
    """One token a character (a Unicode code point), in code point order."""

    lossless = True

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = list(characters)
        self.vocab_size = len(self.characters)
        points = np.array([ord(character) for character in self.characters], dtype=np.uint32)
        # Unseen characters hold vocab_size, which no id has.
        self._unseen = self.vocab_size
        self._id_of = np.full(int(points.max()) + 2, self._unseen, dtype=smallest_integers(self.vocab_size + 1))
        self._id_of[points] = np.arange(self.vocab_size)
        self._points = points

    @classmethod
    def fit(cls, texts: Iterable[str], config: CharConfig) -> Self:
        """Every character of the texts."""
        return cls(sorted(set[str]().union(*texts)))

    def encode(self, text: str) -> np.ndarray:
        """Ids of the characters.

        Raises:
            TokenizerError: with the list of characters that were never seen.
        """
        # surrogatepass: a lone surrogate is then reported as the unseen character it is.
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = self._id_of[np.minimum(points, len(self._id_of) - 1)]
        if (ids == self._unseen).any():
            unseen = sorted(set(text) - set(self.characters))
            shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unseen[:10])
            raise TokenizerError(
                f"{len(unseen)} character{'s' if len(unseen) > 1 else ''} that the tokenizer has never seen: {shown}"
                + (", ..." if len(unseen) > 10 else ""),
                where=f"a text of {len(text):,} characters",
                mend="leave them out, or train with tokenizer=byte, which knows every text",
            )
        return ids.astype(smallest_integers(self.vocab_size), copy=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of ids."""
        return self._points[np.asarray(list(ids), dtype=np.int64)].astype("<u4").tobytes().decode("utf-32-le")

    def count_bytes(self, ids: np.ndarray) -> int:
        """The widths of the characters in UTF-8, added up."""
        width = np.array([len(c.encode("utf-8", "surrogatepass")) for c in self.characters])
        return int(np.bincount(ids, minlength=self.vocab_size) @ width)

    def to_json(self) -> dict[str, Any]:
        """The characters in the order of their ids."""
        return {"characters": self.characters}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From the list of characters."""
        characters = state["characters"]
        if not isinstance(characters, list) or not all(isinstance(c, str) and len(c) == 1 for c in characters):
            raise TokenizerError("characters must be a list of single characters", where="tokenizer.json")
        if not characters or len(set(characters)) != len(characters):
            raise TokenizerError("characters must be given, each of them once", where="tokenizer.json")
        return cls(characters)


@TOKENIZERS.register("byte")
class ByteTokenizer:
    """One token a byte of UTF-8."""

    lossless = True
    vocab_size = 256

    @classmethod
    def fit(cls, texts: Iterable[str], config: ByteConfig) -> Self:
        """The same for every text."""
        return cls()

    def encode(self, text: str) -> np.ndarray:
        """The bytes of the text in UTF-8.

        Raises:
            TokenizerError: the text has a lone surrogate, which UTF-8 has no bytes for.
        """
        try:
            return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"U+{ord(text[error.start]):04X} is half a character (a lone surrogate)",
                where=f"character {error.start} of the text",
                mend="leave it out",
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; bytes that are not UTF-8 (a sample may have them) show as U+FFFD."""
        return bytes(list(ids)).decode("utf-8", errors="replace")

    def count_bytes(self, ids: np.ndarray) -> int:
        """One each."""
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From nothing."""
        return cls()
