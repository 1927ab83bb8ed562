"""A default prompt, taken from the training text."""

from __future__ import annotations

import re

from nanolm.config.dataset import CONTENT, TemplateConfig
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens.stream import Stream
from nanolm.errors import NanolmError

# Tokens of the text that are considered, and the maximum length of a prompt.
TOKENS = 256
MAX_CHARACTERS = 20


def choose_message(stream: Stream, tokenizer: Tokenizer, template: TemplateConfig) -> str:
    """Choose the first short message of a user from a text of conversations.

    Returns:
        "" if there is none among the first conversations.
    """
    before, after = template.user.split(CONTENT)
    after += template.assistant.split(CONTENT)[0]
    for start in stream.documents[:TOKENS].tolist():
        text = tokenizer.decode(stream.tokens[start : start + TOKENS].tolist())
        message, found, _ = text.partition(before)[2].partition(after)
        if found and message.isprintable() and 0 < len(message) <= 3 * MAX_CHARACTERS:
            return message
    return ""


def choose_prompt(stream: Stream, tokenizer: Tokenizer) -> str:
    """Choose a prompt from the beginning of a text that its tokenizer encodes and decodes without loss.

    Returns:
        A few words of one line if there are any, else a few characters. Text that a lossy tokenizer encodes but does
        not restore is the last choice; "" if it encodes nothing.
    """
    text = tokenizer.decode(stream.tokens[:TOKENS].tolist())
    encoded = {one: result for one in _candidates(text) if (result := _round_trip(one, tokenizer))}
    return next((one for one, result in encoded.items() if result == one), next(iter(encoded), ""))


def _candidates(text: str) -> list[str]:
    """Return possible prompts, best first."""
    beginnings = [_truncate(line) for line in re.findall(r"\w[^\n\r]*", text) if line.isprintable()]
    # A word tokenizer may have only some of the words in its vocabulary.
    single = re.findall(r"\w+", text)
    return [prompt for prompt in (*beginnings, *single, *dict.fromkeys(text), text) if prompt]


def _truncate(line: str) -> str:
    """Shorten a line to MAX_CHARACTERS, at the end of a word if it has several."""
    if len(line) <= MAX_CHARACTERS:
        return line.rstrip()
    words = line[: MAX_CHARACTERS + 1].rsplit(None, 1)
    return words[0].rstrip() if len(words) > 1 else line[:MAX_CHARACTERS]


def _round_trip(prompt: str, tokenizer: Tokenizer) -> str:
    """Encode and decode a prompt; "" if it cannot be encoded."""
    try:
        return tokenizer.decode(tokenizer.encode(prompt).tolist())
    except NanolmError:
        return ""
