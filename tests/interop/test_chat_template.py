"""Chat templates of exported tokenizers, rendered by transformers and by nanolm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanolm.config.dataset import TemplateConfig
from nanolm.data.conversation import ASSISTANT, SYSTEM, USER, Message, render, render_prompt
from nanolm.inference.load import load_run
from nanolm.inference.prompt import encode_prompt
from nanolm.interop.chat_template import chat_template
from nanolm.interop.export import export
from tests.interop.oracle import open_exported
from tests.run_fixtures import make_run

ODD = "{{ x }} {% if %} {# #} 'single' \"double\" \\n \\u0041 \\N{DIGIT ONE} \r\n\t\0\x7f\x85\u2028 é 中 😀 {{content}}"

TEMPLATES = {
    "default": TemplateConfig(),
    "odd": TemplateConfig(
        system=f"{ODD}{{content}}{ODD}\n", user=f"{ODD}\n{{content}}", assistant=f"\n {{content}}{ODD}"
    ),
    "bare": TemplateConfig(system="{content}", user="{content}", assistant="{content}"),
    "blanks": TemplateConfig(system=" \n{content}\n\n", user="\n{content}\n ", assistant="  {content}  \n\n"),
}

CONVERSATIONS = {
    "prompt": [Message(USER, "one")],
    "all roles": [
        Message(SYSTEM, " be brief\n"),
        Message(USER, "one"),
        Message(ASSISTANT, "1\n"),
        Message(USER, ODD),
        Message(ASSISTANT, ODD),
        Message(USER, ""),
    ],
    "ends with a response": [Message(USER, "one"), Message(ASSISTANT, "1")],
    "empty": [],
}


def as_json(messages: list[Message]) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def rendered(template: TemplateConfig, messages: list[Message], **settings: Any) -> str:
    """Render messages as transformers' tokenizers do."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template([as_json(messages)], chat_template=chat_template(template), **settings)
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_chat_template_renders_as_nanolm(name: str, conversation: str) -> None:
    template, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    text = "".join(segment.text for segment in render(messages, template))
    assert rendered(template, messages) == text
    begins = render_prompt([], template) if template.assistant.partition("{content}")[0] else ""
    assert rendered(template, messages, add_generation_prompt=True) == text + begins


@pytest.mark.slow
def test_chat_template_refuses_other_roles() -> None:
    with pytest.raises(Exception, match="a role is one of system, user, assistant"):
        rendered(TemplateConfig(), [Message("tool", "x")])


def test_chat_template_is_one_line_of_jinja() -> None:
    assert chat_template(TemplateConfig(system="", user="{content}\n", assistant='"{content}')) == (
        """{% for message in messages %}"""
        """{% if message.role == 'system' %}{{ "" + message.content + "" }}"""
        """{% elif message.role == 'user' %}{{ "" + message.content + "\\n" }}"""
        """{% elif message.role == 'assistant' %}{{ "\\"" + message.content + "" }}"""
        """{% else %}{{ raise_exception('a role is one of system, user, assistant') }}{% endif %}{% endfor %}"""
        """{% if add_generation_prompt %}{{ "\\"" }}{% endif %}"""
    )


@pytest.mark.slow
def test_exported_tokenizer_applies_the_template_of_the_run(tmp_path: Path) -> None:
    data = tmp_path / "chat.jsonl"
    lines = [{"prompt": f"{n} and {n + 1}?", "response": f"{2 * n + 1}"} for n in range(100)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = ("dataset=instructions", "model=gpt2", "tokenizer=bpe", "tokenizer.vocab_size=300")
    template = "dataset.template.user='Q: {content}; '"
    run = make_run(tmp_path / "run", data, *overrides, template, "trainer.max_steps=2", "trainer.sample_tokens=0")
    loaded = load_run(str(run))
    _, tokenizer = open_exported(export(run, tmp_path / "out").folder)
    messages = [Message(USER, "3 and 4?")]
    settings = {"add_generation_prompt": True}
    assert loaded.config.dataset.template.user == "Q: {content}; "  # type: ignore[attr-defined]
    found = tokenizer.apply_chat_template(as_json(messages), tokenize=False, **settings)
    assert found == render_prompt(messages, loaded.config.dataset.template)  # type: ignore[attr-defined]
    ids = tokenizer.apply_chat_template(as_json(messages), return_dict=False, **settings)
    prompt = encode_prompt(loaded.tokenizer, "3 and 4?", loaded.config.dataset.template)  # type: ignore[attr-defined]
    assert tuple(ids) == prompt.tokens

    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(export(run, tmp_path / "gguf", format="gguf").folder / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
