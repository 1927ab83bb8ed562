"""Generate one text from a prompt."""

from __future__ import annotations

from typing import Any

from nanolm.errors import SettingsError
from nanolm.inference.engine import Engine
from nanolm.inference.load import Loaded
from nanolm.inference.settings import GenerationSettings


def generate(loaded: Loaded, prompt: str, *, raw: bool = False, **settings: Any) -> str:
    """Generate a text.

    Args:
        prompt: a text to continue; for a run of dataset=instructions, a message to respond to.
        raw: whether to continue the prompt as it is for a run of dataset=instructions, too.
        settings: fields of GenerationSettings.

    Returns:
        The prompt and its continuation, as the tokenizer decodes them; or the response to the message.

    Raises:
        SettingsError: an argument is out of range, or the prompt is empty.
        TokenizerError: the prompt has characters that are not in the vocabulary.
    """
    if not prompt:
        raise SettingsError("the prompt is empty", where="--prompt", hint="give it at least one character")
    engine = Engine.of(loaded, raw=raw)
    (generation,) = engine.generate(prompt, GenerationSettings(**settings))
    return engine.shown_prompt(generation.prompt) + generation.text
