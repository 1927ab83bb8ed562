"""Tokenizers that need no training: characters and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from nanolm.config.tokenizer import ByteConfig, CharConfig
from nanolm.data.tokenizers.byte_pieces import BytePieces
from nanolm.data.tokenizers.checks import check_ids, encode_utf8, get_strings, smallest_dtype, unseen_error
from nanolm.errors import TokenizerError
from nanolm.registry import TOKENIZERS

# Characters encoded at a time: small enough for the tables and the text to stay in the CPU cache.
_CHUNK = 1 << 16


@TOKENIZERS.register("char")
class CharTokenizer(BytePieces):
    """One token per character (Unicode code point), in code point order.

    Args:
        characters: the vocabulary, without duplicates; the id of a character is its index.

    Raises:
        TokenizerError: there are no characters, or one is a lone surrogate.
    """

    def __init__(self, characters: Sequence[str]) -> None:
        if not characters:
            raise TokenizerError("a text without characters has no vocabulary")
        super().__init__([encode_utf8(character) for character in characters], {})
        self.characters = list(characters)
        points = np.array([ord(character) for character in self.characters], dtype=np.uint32)
        # Unseen characters map to vocab_size, which is no id.
        self._unseen = self.vocab_size
        self._id_of = np.full(max(int(points.max()) + 2, 257), self._unseen, smallest_dtype(self.vocab_size + 1))
        self._id_of[points] = np.arange(self.vocab_size)
        # If every id fits a byte, bytes.translate is several times as fast as a NumPy lookup.
        self._latin1_table = self._id_of[:256].tobytes() if self._id_of.dtype == np.uint8 else None

    @classmethod
    def fit(cls, texts: Iterable[str], config: CharConfig) -> Self:
        """Collect every character of the texts."""
        return cls(sorted(set().union(*texts)))

    def encode(self, text: str) -> np.ndarray:
        ids = np.empty(len(text), dtype=self.dtype)
        for start in range(0, len(text), _CHUNK):
            part = text[start : start + _CHUNK]
            found = self._lookup(part)
            if found is None:
                unseen = [f"{c!r} (U+{ord(c):04X})" for c in sorted(set(text) - set(self.characters))]
                hint = "remove them, or train with tokenizer=byte, which encodes every text"
                raise unseen_error("character", unseen, text, hint)
            ids[start : start + len(part)] = found
        return ids

    def _lookup(self, text: str) -> np.ndarray | None:
        """Return the ids of a text, or None if a character is not in the vocabulary."""
        try:
            latin1 = text.encode("latin-1")
        except UnicodeEncodeError:
            # surrogatepass: a lone surrogate is then reported as an unseen character.
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
            ids = self._id_of.take(points, mode="clip")
        else:
            if self._latin1_table is not None:
                ids = np.frombuffer(latin1.translate(self._latin1_table), dtype=np.uint8)
            else:
                ids = self._id_of.take(np.frombuffer(latin1, dtype=np.uint8))
        return None if ids.size and ids.max() == self._unseen else ids

    def to_json(self) -> dict[str, Any]:
        return {"characters": self.characters}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        characters = get_strings(state, "characters")
        if not all(len(character) == 1 for character in characters):
            raise TokenizerError("characters must be a list of single characters")
        return cls(characters)


@TOKENIZERS.register("byte")
class ByteTokenizer:
    """One token per byte of UTF-8."""

    lossless = True
    vocab_size = 256
    # Bytes of each token, by id.
    pieces = tuple(bytes([byte]) for byte in range(256))

    def __init__(self) -> None:
        self.special_tokens: dict[str, int] = {}

    @classmethod
    def fit(cls, texts: Iterable[str], config: ByteConfig) -> Self:
        """Return the tokenizer, which is the same for every text."""
        return cls()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(encode_utf8(text), dtype=np.uint8)

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text; invalid UTF-8, which a sample may have, becomes U+FFFD."""
        return check_ids(ids, 256).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def count_bytes(self, ids: np.ndarray) -> int:
        return len(ids)

    def to_json(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        return cls()
