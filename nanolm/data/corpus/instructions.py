"""The dataset of instructions: conversations in JSON Lines, of which only the responses are scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nanolm.config.dataset import InstructionsConfig, Nul
from nanolm.data.conversation import ASSISTANT, ROLES, USER, Message, render
from nanolm.data.corpus.reading import Part, is_nul_heavy
from nanolm.data.corpus.sources import json_object, numbered_lines
from nanolm.errors import DataError, NanolmError
from nanolm.registry import DATASETS

# Rows that are shown in an error, at most.
MAX_SHOWN = 20
# A longer row is probably not a conversation.
MAX_CHARACTERS = 2**24


@DATASETS.register("instructions")
def instructions(config: InstructionsConfig) -> Iterator[Part]:
    """Read a conversation from each line.

    Raises:
        DataError: some lines are not conversations; lists them.
    """
    problems: list[str] = []
    n_rows = 0
    for line, where in numbered_lines(config):
        n_rows += 1
        try:
            messages = _messages(line, config)
        except NanolmError as error:
            problems.append(f"{where}: {error.found}")
        if not problems:
            segments = render(messages, config.template)
            for number, (text, scored) in enumerate(segments, start=1):
                yield Part(text, number == len(segments), scored)
    if problems:
        shown = problems[:MAX_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown):,} more")
        raise DataError(
            f"{len(problems):,} of {n_rows:,} rows cannot be used:\n    " + "\n    ".join(shown),
            where=f"dataset.path, {config.path}",
            hint=f"each line is an object with text in {config.prompt_field!r} and {config.response_field!r}, or with "
            f"{config.messages_field!r}, a list of objects with a role ({', '.join(ROLES)}) and a content",
        )


def _messages(line: str, config: InstructionsConfig) -> list[Message]:
    """Read the messages of a line.

    Raises:
        DataError: says all that is wrong with them.
    """
    if len(line) > MAX_CHARACTERS:
        raise DataError(f"the line has {len(line):,} characters, and at most {MAX_CHARACTERS:,} are supported")
    row = json_object(line, "")
    if config.messages_field in row:
        given = row[config.messages_field]
        pair = [name for name in (config.prompt_field, config.response_field) if name in row]
        problems = [f"it has {config.messages_field!r} as well as {name!r}" for name in pair]
        places = _listed(given, config.messages_field, problems)
    else:
        fields = {config.prompt_field: USER, config.response_field: ASSISTANT}
        places = [(repr(name), role, row[name]) for name, role in fields.items() if name in row]
        problems = []
        if missing := [repr(name) for name in fields if name not in row]:
            found = ", ".join(map(_shown, list(row)[:8])) or "none"
            problems.append(f"there is no field {' and no field '.join(missing)}; its fields: {found}")
    problems += [problem for place, _, content in places if (problem := _wrong_content(place, content, config))]
    if not problems and ASSISTANT not in [role for _, role, _ in places]:
        problems.append(f"no message has the role {ASSISTANT!r}, so there is nothing to learn")
    if problems:
        raise DataError("; ".join(problems))
    return [Message(role, content) for _, role, content in places]


def _listed(given: Any, field: str, problems: list[str]) -> list[tuple[str, str, Any]]:
    """Return place, role and content of each message of a list, and add what is wrong with it to the problems."""
    if not isinstance(given, list) or not given:
        problems.append(f"{field!r} holds {_kind(given)}, not a list of messages")
        return []
    places = []
    for number, message in enumerate(given, start=1):
        place = f"message {number}"
        if not isinstance(message, dict):
            problems.append(f"{place} is {_kind(message)}, not an object")
        elif missing := [name for name in ("role", "content") if name not in message]:
            problems.append(f"{place} has no {' and no '.join(missing)}")
        elif message["role"] not in ROLES:
            problems.append(f"{place} has the role {_shown(message['role'])}, which is none of {', '.join(ROLES)}")
        else:
            places.append((f"{place} ({message['role']})", message["role"], message["content"]))
    return places


def _wrong_content(place: str, content: Any, config: InstructionsConfig) -> str:
    """Say what is wrong with the text of a message; an empty string if nothing is."""
    if not isinstance(content, str):
        return f"{place} holds {_kind(content)}, not text"
    if not content.strip():
        return f"{place} is {'blank' if content else 'empty'}"
    if surrogate := next((character for character in content if "\ud800" <= character <= "\udfff"), ""):
        return f"{place} has half a character, U+{ord(surrogate):04X} (a lone surrogate)"
    if config.nul is Nul.refuse and is_nul_heavy(content):
        return (
            f"{place} has {content.count(chr(0)):,} NULs in {len(content):,} characters (dataset.nul=allow accepts it)"
        )
    return ""


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return f"an empty {type(value).__name__}" if value in ([], {}, "") else type(value).__name__


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
