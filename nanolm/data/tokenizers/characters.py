"""The two tokenizers without a training: one token a character, one token a byte."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import ByteConfig, CharConfig
from nanolm.data.tokenizers.protocol import checked, smallest_dtype, strings, utf8
from nanolm.errors import TokenizerError
from nanolm.registry import TOKENIZERS

# Characters encoded at a time: small enough for the tables and the text to stay in the cache.
_CHUNK = 1 << 16


@TOKENIZERS.register("char")
class CharTokenizer:
    """One token a character (a Unicode code point), in code point order.

    Args:
        characters: the vocabulary; a character's id is its place.

    Raises:
        TokenizerError: there are none, one is there twice or is half a character (a lone surrogate).
    """

    lossless = True

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = list(characters)
        self.vocab_size = len(self.characters)
        self.special_tokens: dict[str, int] = {}
        if not characters or len(set(characters)) != len(characters):
            raise TokenizerError("characters must be given, each of them once", where="tokenizer.json")
        self._width = np.array([len(utf8(character)) for character in self.characters])
        points = np.array([ord(character) for character in self.characters], dtype=np.uint32)
        # Unseen characters hold vocab_size, which no id has.
        self._unseen = self.vocab_size
        self._id_of = np.full(max(int(points.max()) + 2, 257), self._unseen, smallest_dtype(self.vocab_size + 1))
        self._id_of[points] = np.arange(self.vocab_size)
        self._points = points
        # While every id fits a byte, bytes.translate is several times as fast as a lookup by numpy.
        self._of_latin1 = self._id_of[:256].tobytes() if self._id_of.dtype == np.uint8 else None

    @classmethod
    def fit(cls, texts: Iterable[str], config: CharConfig) -> Self:
        """Every character of the texts."""
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        characters = sorted(seen)
        if not characters:
            raise TokenizerError("a text without characters has no vocabulary", where="the corpus")
        return cls(characters)

    def encode(self, text: str) -> np.ndarray:
        """Ids of the characters.

        Raises:
            TokenizerError: with the list of characters that were never seen.
        """
        ids = np.empty(len(text), dtype=smallest_dtype(self.vocab_size))
        for start in range(0, len(text), _CHUNK):
            part = text[start : start + _CHUNK]
            found = self._lookup(part)
            if found is None:
                raise self._never_seen(text)
            ids[start : start + len(part)] = found
        return ids

    def _lookup(self, text: str) -> np.ndarray | None:
        """The ids of a piece of text; None where a character was never seen."""
        try:
            latin1 = text.encode("latin-1")
        except UnicodeEncodeError:
            # surrogatepass: a lone surrogate is then reported as the unseen character it is.
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            ids = self._id_of.take(points, mode="clip")
        else:
            if self._of_latin1 is not None:
                ids = np.frombuffer(latin1.translate(self._of_latin1), dtype=np.uint8)
            else:
                ids = self._id_of.take(np.frombuffer(latin1, dtype=np.uint8))
        return None if ids.size and ids.max() == self._unseen else ids

    def _never_seen(self, text: str) -> TokenizerError:
        unseen = sorted(set(text) - set(self.characters))
        shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unseen[:10])
        return TokenizerError(
            f"{len(unseen)} character{'s' if len(unseen) > 1 else ''} that the tokenizer has never seen: {shown}"
            + (", ..." if len(unseen) > 10 else ""),
            where=f"a text of {len(text):,} characters",
            hint="leave them out, or train with tokenizer=byte, which knows every text",
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The characters of ids."""
        return self._points[checked(ids, self.vocab_size)].astype("<u4").tobytes().decode("utf-32-le")

    def count_bytes(self, ids: np.ndarray) -> int:
        """The widths of the characters in UTF-8, added up."""
        return int(np.bincount(ids, minlength=self.vocab_size) @ self._width)

    def to_json(self) -> dict[str, Any]:
        """The characters in the order of their ids."""
        return {"characters": self.characters}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """From the list of characters."""
        characters = strings(state, "characters")
        if not all(len(character) == 1 for character in characters):
            raise TokenizerError("characters must be a list of single characters", where="tokenizer.json")
        return cls(characters)


@TOKENIZERS.register("byte")
class ByteTokenizer:
    """One token a byte of UTF-8."""

    lossless = True
    vocab_size = 256

    def __init__(self) -> None:
        self.special_tokens: dict[str, int] = {}

    @classmethod
    def fit(cls, texts: Iterable[str], config: ByteConfig) -> Self:
        """The same for every text."""
        return cls()

    def encode(self, text: str) -> np.ndarray:
        """The bytes of the text in UTF-8.

        Raises:
            TokenizerError: the text has a lone surrogate, which UTF-8 has no bytes for.
        """
        return np.frombuffer(utf8(text), dtype=np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of bytes; bytes that are not UTF-8 (a sample may have them) show as U+FFFD."""
        return checked(ids, 256).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

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
