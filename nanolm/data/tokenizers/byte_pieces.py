"""The vocabulary of bytes that byte-level tokenizers share."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import regex

from nanolm.data.tokenizers.checks import check_ids, encode_utf8, smallest_dtype

_CHUNK = 1 << 16
# GPT-2's expression also splits here in any context: before the last blank in front of a visible ASCII character.
_CUT = re.compile(r"[ \n](?=[!-~])")
# On a run of a million blanks the engine's stack overflows. Possessive and tried once per run, so that it is linear.
_LONG_BLANK = regex.compile(r"(?<!\s)\s{1000,}+(?=\S)")


class BytePieces:
    """A vocabulary of tokens that represent bytes; decodes ids and counts their bytes.

    Args:
        content: bytes by id.
        special_tokens: ids that represent no text, by name; decoding shows the names.
    """

    lossless = True

    def __init__(self, content: Sequence[bytes], special_tokens: dict[str, int]) -> None:
        self.vocab_size = len(content)
        self.special_tokens = special_tokens
        self.dtype = smallest_dtype(self.vocab_size)
        self._shown = list(content)
        self._width = np.array([len(piece) for piece in content], dtype=np.int64)
        for name, number in special_tokens.items():
            self._shown[number] = encode_utf8(name)
            self._width[number] = 0

    @property
    def pieces(self) -> Sequence[bytes]:
        """Bytes of each token as decoding shows it, by id."""
        return self._shown

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text; invalid UTF-8, which a sample may have, becomes U+FFFD.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        shown = self._shown
        numbers = check_ids(ids, self.vocab_size).tolist()
        return b"".join([shown[number] for number in numbers]).decode("utf-8", errors="replace")

    def count_bytes(self, ids: np.ndarray) -> int:
        """Return the number of bytes of the ids; special tokens have none."""
        return int(np.bincount(ids, minlength=self.vocab_size) @ self._width)


def _byte_characters() -> dict[int, str]:
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(others)}


# GPT-2 (Radford et al. 2019) writes a byte that is a visible Latin-1 character as that character, and the n-th other
# byte as U+0100 + n. The order is that of its first 256 ids.
BYTE_TO_CHARACTER = _byte_characters()
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}


def token_bytes(token: str) -> bytes | None:
    """Return the bytes of a token in GPT-2's spelling, or None if a character of it represents no byte."""
    try:
        return bytes([CHARACTER_TO_BYTE[character] for character in token])
    except KeyError:
        return None


def text_chunks(text: str) -> Iterator[str]:
    """Yield a text in chunks of about 65,536 characters, cut only where GPT-2's expression splits it as well.

    A chunk is longer if there is no such place. A run of a thousand blanks or more is a chunk of its own.

    Raises:
        TokenizerError: the text has a lone surrogate.
    """
    encode_utf8(text)
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _CHUNK)
        end = cut.start() if cut else len(text)
        if end - start > 4 * _CHUNK:
            for blank in _LONG_BLANK.finditer(text, start, end):
                # The last blank in front of a word belongs to the word.
                yield text[start : blank.end() - 1]
                start = blank.end() - 1
        if start < end:
            yield text[start:end]
        start = end


def train(model: Any, trainer: type[Any], texts: Iterable[str], **settings: Any) -> dict[str, Any]:
    """Train a model of Hugging Face tokenizers on the bytes of some texts.

    Returns:
        Its tokenizer.json.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    engine = Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = list(BYTE_TO_CHARACTER.values())
    chunks = (chunk for text in texts for chunk in text_chunks(text))
    engine.train_from_iterator(chunks, trainer(show_progress=False, initial_alphabet=alphabet, **settings))
    return json.loads(engine.to_str())


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lists of `size` items; the last one may be shorter (itertools.batched of Python 3.12)."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
