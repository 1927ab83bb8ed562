"""The template of dataset=instructions as a chat template of Hugging Face tokenizers, which is written in Jinja."""

from __future__ import annotations

from nanolm.config.dataset import TemplateConfig
from nanolm.data.conversation import ASSISTANT, ROLES, text_around
from nanolm.json_text import dump_json


def chat_template(template: TemplateConfig) -> str:
    """Return the Jinja template that renders messages as `nanolm.data.conversation.render` does.

    With `add_generation_prompt`, the text ends where a response begins, as that of `render_prompt`.
    """
    branches: list[str] = []
    for role in ROLES:
        before, after = map(_literal, text_around(template, role))
        keyword = "elif" if branches else "if"
        branches.append(f"{{% {keyword} message.role == '{role}' %}}{{{{ {before} + message.content + {after} }}}}")
    refusal = f"{{% else %}}{{{{ raise_exception('a role is one of {', '.join(ROLES)}') }}}}{{% endif %}}"
    begins = _literal(text_around(template, ASSISTANT)[0])
    return (
        f"{{% for message in messages %}}{''.join(branches)}{refusal}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {begins} }}}}{{% endif %}}"
    )


def _literal(text: str) -> str:
    """Return a string of Jinja, which has the escape sequences of Python: JSON's, without pairs of surrogates."""
    return dump_json(text, ensure_ascii=False)
