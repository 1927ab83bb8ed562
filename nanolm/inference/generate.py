"""Generate one text from a prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

from nanolm.config.dataset import TemplateConfig
from nanolm.data.conversation import USER, Message, render_prompt, response_ends, template_of
from nanolm.data.tokenizers import Tokenizer
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
    template = None if raw else template_of(loaded.config.dataset)
    engine = Engine.of(loaded)
    chosen = GenerationSettings(**settings)
    if template is not None:
        text, chosen = put_into_template(prompt, chosen, template, engine.tokenizer)
        (generation,) = engine.generate(text, chosen)
        return generation.text
    (generation,) = engine.generate(prompt, chosen)
    return engine.tokenizer.decode(generation.prompt.tokens) + generation.text


def put_into_template(
    message: str, settings: GenerationSettings, template: TemplateConfig, tokenizer: Tokenizer
) -> tuple[str, GenerationSettings]:
    """Return the text that a response to a message continues, and the settings with which it stops at its end."""
    stop = (*settings.stop, *response_ends(template, tokenizer))
    return render_prompt([Message(USER, message)], template), dataclasses.replace(settings, stop=stop)
