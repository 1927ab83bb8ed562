"""A prompt from a run's own text."""

from __future__ import annotations

import re

from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens.stream import Stream
from nanolm.errors import NanolmError

# How much of the text is looked at, and how long a prompt is at most.
TOKENS = 256
CHARACTERS = 20


def choose_prompt(stream: Stream, tokenizer: Tokenizer) -> str:
    """Choose the beginning of a text as a prompt that its tokenizer encodes and gives back.

    Args:
        stream: the tokens of the text.
        tokenizer: of the same tokens.

    Returns:
        A few words of one line where there are any, else a few characters. With a lossy tokenizer, text that it
        encodes but does not give back is the last choice; "" if it encodes nothing.
    """
    try:
        text = tokenizer.decode(stream.tokens[:TOKENS].tolist())
    except NanolmError:
        return ""
    encoded = {one: result for one in _candidates(text) if (result := _round_trip(one, tokenizer))}
    return next((one for one, result in encoded.items() if result == one), next(iter(encoded), ""))


def _candidates(text: str) -> list[str]:
    """Prompts, the best ones first."""
    lines = [line for line in re.findall(r"\w[^\n\r]*", text) if line.isprintable()]
    words = [_cut(line) for line in lines]
    # A word tokenizer with a small vocabulary may know only some of the words.
    single = re.findall(r"\w+", text)
    return [prompt for prompt in (*words, *single, *dict.fromkeys(text), text) if prompt]


def _cut(line: str) -> str:
    """Up to 20 characters of a line, cut at the end of a word if it has more than one."""
    if len(line) <= CHARACTERS:
        return line.rstrip()
    words = line[: CHARACTERS + 1].rsplit(None, 1)
    return words[0].rstrip() if len(words) > 1 else line[:CHARACTERS]


def _round_trip(prompt: str, tokenizer: Tokenizer) -> str:
    """The prompt as the tokenizer gives it back; "" if it cannot be encoded."""
    try:
        return tokenizer.decode(tokenizer.encode(prompt).tolist())
    except NanolmError:
        return ""
