"""What tokenizers over bytes share: ids to bytes, GPT-2's spelling of bytes, and where a text may be cut."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nanolm.data.tokenizers.protocol import checked, utf8

# What Unicode calls white space, and with it the expressions of the engines. Python's \s has four more.
_WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# GPT-2's expression cuts here whatever stands around it: before the last blank of those ahead of a word.
_CUT = re.compile(r"[ \n](?=[!-~])")
# Tried once a run, and never given back, which would take the square of its length.
_LONG_BLANK = re.compile(f"(?<![{_WHITE}])[{_WHITE}]{{1000,}}+(?=[^{_WHITE}])")
_CHUNK = 1 << 16


class Pieces:
    """The bytes that each id stands for.

    Args:
        content: bytes by id.
        special_tokens: ids that stand for no text; decoding shows their names.
    """

    def __init__(self, content: Sequence[bytes], special_tokens: Mapping[str, int]) -> None:
        self._shown = list(content)
        self._width = np.array([len(piece) for piece in content], dtype=np.int64)
        for name, number in special_tokens.items():
            self._shown[number] = utf8(name)
            self._width[number] = 0

    def text(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 (a sample may have them) show as U+FFFD.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        shown = self._shown
        numbers = checked(ids, len(shown)).tolist()
        return b"".join([shown[number] for number in numbers]).decode("utf-8", errors="replace")

    def count_bytes(self, ids: np.ndarray) -> int:
        """The widths of the ids, added up; special tokens have none."""
        return int(np.bincount(ids, minlength=len(self._width)) @ self._width)


def _spelling() -> dict[int, str]:
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(others)}


# GPT-2 (Radford et al. 2019) writes a byte that is a visible Latin-1 character as itself, the n-th other one as
# U+0100 + n. The order is that of its first 256 ids.
CHARACTER_OF_BYTE = _spelling()
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def spelled(token: str) -> bytes | None:
    """The bytes of a token in GPT-2's spelling; None where it has a character that spells no byte."""
    try:
        return bytes([BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return None


def chunks(text: str) -> Iterator[str]:
    """The text in parts of about 65,536 characters, cut only where GPT-2's expression cuts as well.

    A part may be longer where there is no such place. Blanks by the thousand are parts of their own, as the engine
    of the expression overflows on a million of them.

    Raises:
        TokenizerError: the text has a lone surrogate.
    """
    start = 0
    while start < len(text):
        cut = _CUT.search(text, start + _CHUNK)
        end = cut.start() if cut else len(text)
        if end - start > 4 * _CHUNK:
            for blank in _LONG_BLANK.finditer(text, start, end):
                # Of blanks ahead of a word the last goes with the word.
                yield _whole(text[start : blank.end() - 1])
                start = blank.end() - 1
        if start < end:
            yield _whole(text[start:end])
        start = end


def _whole(text: str) -> str:
    utf8(text)
    return text


def grouped(parts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The parts in lists of `size`, the last of them shorter."""
    remaining = iter(parts)
    while several := list(itertools.islice(remaining, size)):
        yield several
