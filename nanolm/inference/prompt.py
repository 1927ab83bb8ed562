"""The prompt of a generation: its tokens, and where an empty one starts from."""

from __future__ import annotations

import contextlib
import dataclasses

from nanolm.config.dataset import TemplateConfig
from nanolm.data.conversation import USER, Message, render_prompt
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import NanolmError, SettingsError

# Longer prompts are refused: only the last context_length tokens affect the text.
MAX_CHARACTERS = 1 << 18

# Special tokens that mark the end of a text, in order of preference.
END_OF_TEXT = ("<|endoftext|>", "<eos>", "</s>")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        text: as given; "" for an empty prompt.
        tokens: at least one. Those of a message include its template.
        start: name of the token that an empty prompt starts from, such as "<|endoftext|>"; None for other prompts.
        is_message: whether it is a message to respond to.
    """

    text: str
    tokens: tuple[int, ...]
    start: str | None = None
    is_message: bool = False

    @property
    def note(self) -> str | None:
        """What to tell the user about an empty prompt."""
        return None if self.start is None else f"the prompt is empty: the text starts from {self.start}"


def encode_prompt(tokenizer: Tokenizer, text: str, template: TemplateConfig | None = None) -> Prompt:
    """Encode a prompt. An empty one starts from the end-of-text token, or from a line end if there is none.

    Args:
        template: for a message of a user to respond to; None for a text to continue.

    Raises:
        SettingsError: the prompt is too long or has no tokens, or is empty and there is nothing to start from.
        TokenizerError: the prompt has something that is not in the vocabulary.
    """
    require_length(text)
    if not text and template is not None:
        raise SettingsError("the message is empty", where="--prompt", hint="give it at least one character")
    if not text:
        return _empty_prompt(tokenizer)
    is_message = template is not None
    tokens = tokenizer.encode(text if template is None else render_prompt([Message(USER, text)], template))
    if not len(tokens):
        raise SettingsError("the prompt has no tokens", where="--prompt", hint="give it at least one word")
    return Prompt(text, tuple(tokens.tolist()), is_message=is_message)


def require_length(text: str) -> None:
    """Refuse a prompt that is too long.

    Raises:
        SettingsError: it has more than MAX_CHARACTERS.
    """
    if len(text) > MAX_CHARACTERS:
        raise SettingsError(
            f"the prompt has {len(text):,} characters",
            where="--prompt",
            hint=f"at most {MAX_CHARACTERS:,}; only the last tokens that fit the context affect the text",
        )


def end_token(tokenizer: Tokenizer) -> int | None:
    """Return the token that ends a text; None if there is none, or if it represents a line end of the text."""
    special_tokens = getattr(tokenizer, "special_tokens", {})
    name = next((name for name in END_OF_TEXT if name in special_tokens), None)
    if name is None:
        return None
    token = special_tokens[name]
    # Word tokenizers end every line with <eos>, which is decoded as a line end.
    return None if "\n" in tokenizer.decode([token, token]) else token


def _empty_prompt(tokenizer: Tokenizer) -> Prompt:
    special_tokens = getattr(tokenizer, "special_tokens", {})
    for name in END_OF_TEXT:
        if name in special_tokens:
            return Prompt("", (special_tokens[name],), name)
    tokens: list[int] = []
    with contextlib.suppress(NanolmError):
        tokens = tokenizer.encode("\n").tolist()
    if not tokens:
        raise SettingsError(
            "the prompt is empty, and the vocabulary has neither <eos> nor a line end to start from",
            where="--prompt",
            hint="give it at least one character",
        )
    return Prompt("", tuple(tokens), "a line end")
