"""Text from tokens, one at a time: complete characters only, up to a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from nanolm.data.tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
# UTF-8 has at most three bytes in front of the one that completes a character.
_MAX_INCOMPLETE = 3


class TextDecoder(Protocol):
    """Converts a growing text of tokens to characters."""

    def add(self, token: int) -> str:
        """Return the characters that the token completes; "" if there are none."""

    def finish(self) -> str:
        """Return the rest: U+FFFD for bytes that are not a character."""


class ByteDecoder:
    """A decoder for tokens that represent bytes of UTF-8.

    Args:
        pieces: bytes of each token.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(self._pieces[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class DifferenceDecoder:
    """A decoder for any tokenizer: the text of all tokens without the text of those before.

    Trailing U+FFFD is held back, because the next token may complete it. If a token changes earlier text, as a
    tokenizer does that removes the blank before a full stop, what follows the common beginning is returned at the end.

    Args:
        prompt: tokens of the prompt, on which the text of the first token may depend.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt)
        self._shown = tokenizer.decode(self._tokens)

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        complete = text.rstrip(REPLACEMENT)
        return self._show(text[: max(len(complete), len(text) - _MAX_INCOMPLETE)])

    def finish(self) -> str:
        text = self._tokenizer.decode(self._tokens)
        pairs = zip(self._shown, text, strict=False)
        n_common = next((n for n, (shown, now) in enumerate(pairs) if shown != now), min(len(self._shown), len(text)))
        self._shown = text[:n_common]
        return self._show(text)

    def _show(self, text: str) -> str:
        if not text.startswith(self._shown):
            return ""
        new = text[len(self._shown) :]
        self._shown = text
        return new


def text_decoder(tokenizer: Tokenizer, prompt: Sequence[int]) -> TextDecoder:
    """Return the decoder of the text that continues a prompt.

    The tokens of a tokenizer with `pieces`, the bytes of each token, are decoded on their own.
    """
    pieces = getattr(tokenizer, "pieces", None)
    return DifferenceDecoder(tokenizer, prompt) if pieces is None else ByteDecoder(pieces)


class StopScanner:
    """Finds stop strings in a growing text, and holds back what may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return the text to show, and whether a stop string has been found; it is not shown."""
        if not self._stop:
            return text, False
        held = self._held + text
        found = [at for at in map(held.find, self._stop) if at >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        n_held = max(self._longest_beginning(held, stop) for stop in self._stop)
        self._held = held[len(held) - n_held :]
        return held[: len(held) - n_held], False

    def finish(self) -> str:
        """Return the text that was held back."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _longest_beginning(text: str, stop: str) -> int:
        """Return the length of the longest beginning of a stop string that the text ends with."""
        longest = min(len(stop) - 1, len(text))
        return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
