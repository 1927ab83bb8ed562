"""Conversations as text: messages in the template of dataset=instructions, and the ends of responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from nanolm.config.dataset import CONTENT, DatasetConfig, InstructionsConfig, TemplateConfig
from nanolm.data.tokenizers import Tokenizer

SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")


class Message(NamedTuple):
    """A message of a conversation; the role is one of ROLES."""

    role: str
    content: str


class Segment(NamedTuple):
    """A piece of a conversation that is tokenized by itself.

    Attributes:
        text: not empty.
        scored: whether the loss includes it.
    """

    text: str
    scored: bool


def template_of(dataset: DatasetConfig) -> TemplateConfig | None:
    """Return the template of a dataset; None if it has no conversations."""
    return dataset.template if isinstance(dataset, InstructionsConfig) else None


def render(messages: Iterable[Message], template: TemplateConfig) -> list[Segment]:
    """Put messages into a template.

    What precedes a response is one segment, so that its tokens are those of `render_prompt` for the same messages. A
    response and what ends it are two scored segments: the end has the same tokens after every response. Which text is
    scored depends on the roles alone, even if the markers of the template occur in a message.
    """
    segments: list[Segment] = []
    unscored = ""
    for role, content in messages:
        before, after = text_around(template, role)
        if role == ASSISTANT:
            segments += [Segment(unscored + before, False), Segment(content, True), Segment(after, True)]
            unscored = ""
        else:
            unscored += before + content + after
    return [segment for segment in [*segments, Segment(unscored, False)] if segment.text]


def render_prompt(messages: Iterable[Message], template: TemplateConfig) -> str:
    """Return the text of messages of the system or a user, up to where the response begins."""
    return render([*messages, Message(ASSISTANT, "")], template)[0].text


def response_ends(template: TemplateConfig, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the texts at which a generated response ends: what follows it in the template, as written and as decoded.

    A tokenizer that is not lossless decodes it to another text.
    """
    _, after = text_around(template, ASSISTANT)
    decoded = tokenizer.decode(tokenizer.encode(after).tolist()).strip()
    return tuple(dict.fromkeys(text for text in (after, decoded if not tokenizer.lossless else after) if text))


def text_around(template: TemplateConfig, role: str) -> tuple[str, str]:
    """Return the text before and after the content of a message."""
    before, _, after = getattr(template, role).partition(CONTENT)
    return before, after
