"""What the page asks for: JSON objects, every value of which is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from nanolm import option_types
from nanolm.errors import NanolmError, SettingsError, raise_all
from nanolm.inference.prompt import MAX_CHARACTERS, require_length
from nanolm.inference.settings import GenerationSettings

# A prompt of MAX_CHARACTERS, each written as an escaped surrogate pair, with room for the settings.
MAX_BODY_BYTES = 12 * MAX_CHARACTERS + (1 << 16)

# More tokens would make the page slow.
MAX_NEW_TOKENS = 10_000

# Alternatives shown with every token.
N_ALTERNATIVES = 10


class RequestError(SettingsError):
    """A request that is not served.

    Attributes:
        status: of the HTTP response.
    """

    status = 400


class ForbiddenError(RequestError):
    """A request without the token, of another origin, or for another host."""

    status = 403


class TooLargeError(RequestError):
    """A request with a prompt that is too long."""

    status = 413


@dataclasses.dataclass(frozen=True)
class WriteRequest:
    """A text to write.

    Attributes:
        run: number of the run.
        prompt: text to continue, or message to respond to.
        settings: not yet checked for the model.
    """

    run: int
    prompt: str
    settings: GenerationSettings


@dataclasses.dataclass(frozen=True)
class AttentionRequest:
    """Attention of the last token of a text.

    Attributes:
        run: number of the run.
        tokens: the last tokens of the text.
        length: number of all tokens of the text.
    """

    run: int
    tokens: tuple[int, ...]
    length: int


def read_write_request(body: bytes, n_runs: int) -> WriteRequest:
    """Parse the request for a text.

    Raises:
        TooLargeError: the prompt is too long.
        RequestError, SettingsError: with everything else that is wrong.
    """
    fields = _object(body)
    prompt = fields.get("prompt", "")
    if isinstance(prompt, str):
        try:
            require_length(prompt)
        except SettingsError as error:
            raise TooLargeError(error.found, where=error.where, hint=error.hint) from error
    given = fields.get("settings", {})
    problems = [*_unknown(fields, ("run", "prompt", "settings"))]
    run = _checked(problems, "run", fields.get("run"), lambda value: _run(value, n_runs))
    text = _checked(problems, "prompt", prompt, _text)
    values: dict[str, Any] = {}
    if isinstance(given, dict):
        problems += _unknown(given, tuple(SETTINGS))
        for name in [name for name in SETTINGS if name in given]:
            value = _checked(problems, name, given[name], SETTINGS[name])
            values |= {} if value is None else {name: value}
    else:
        problems.append(_wrong("settings", given, "is not an object", "an object, such as {}"))
    settings = GenerationSettings(**{"alternatives": N_ALTERNATIVES, **values})
    if settings.max_new_tokens > MAX_NEW_TOKENS:
        hint = f"at most {MAX_NEW_TOKENS:,} on the page; `nanolm generate` has no limit"
        problems.append(SettingsError(f"--max-new-tokens is {settings.max_new_tokens}", where="the page", hint=hint))
    # The context length does not matter to the settings that a request has.
    problems += settings.problems(option_types.LARGEST)
    raise_all(problems)
    assert run is not None
    assert text is not None
    return WriteRequest(run, text, settings)


def read_attention_request(body: bytes, n_runs: int) -> AttentionRequest:
    """Parse the request for attention.

    Raises:
        RequestError: with everything that is wrong.
    """
    fields = _object(body)
    problems = [*_unknown(fields, ("run", "tokens", "length"))]
    run = _checked(problems, "run", fields.get("run"), lambda value: _run(value, n_runs))
    tokens = _checked(problems, "tokens", fields.get("tokens"), _tokens)
    length = _checked(problems, "length", fields.get("length"), _whole_number)
    if tokens is not None and length is not None and length < len(tokens):
        problems.append(_wrong("length", length, "is less than the number of tokens", f"{len(tokens)} or more"))
    raise_all(problems)
    assert run is not None
    assert tokens is not None
    assert length is not None
    return AttentionRequest(run, tokens, length)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the request is not JSON: {reason}", hint="reload the page") from error
    if not isinstance(found, dict):
        raise RequestError("the request is not a JSON object", hint="reload the page")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _unknown(fields: Mapping[str, Any], known: Sequence[str]) -> list[NanolmError]:
    return [
        RequestError(f"unknown field {option_types.quote(name)}", hint=f"one of: {', '.join(known)}")
        for name in fields
        if name not in known
    ]


def _checked(problems: list[NanolmError], name: str, value: object, check: Callable[[Any], Any]) -> Any:
    """Return the checked value; None, with an entry in `problems`, if it is wrong."""
    try:
        return check(value)
    except SettingsError as error:
        problems.append(_wrong(name, value, error.found, error.hint))
        return None


def _wrong(name: str, value: object, reason: str, hint: str) -> RequestError:
    shown = option_types.quote(value) if isinstance(value, str) else json_shown(value)
    return RequestError(f"{name} is {shown}, which {reason}", where=name, hint=hint)


def json_shown(value: object) -> str:
    """Return the beginning of a value as the request has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    shown = str(value)
    return shown if len(shown) <= option_types.SHOWN_CHARACTERS else f"{shown[: option_types.SHOWN_CHARACTERS]}..."


def _run(value: object, n_runs: int) -> int:
    hint = "0" if n_runs == 1 else f"from 0 to {n_runs - 1}"
    if not _is_whole(value) or not 0 <= value < n_runs:  # type: ignore[operator]
        raise SettingsError("is not the number of a run", hint=hint)
    return value  # type: ignore[return-value]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise SettingsError("is not a text", hint="a text; it may be empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SettingsError("is not UTF-8", hint="remove the half of a surrogate pair") from error
    return value


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole_number(value: object) -> int:
    if not _is_whole(value):
        raise SettingsError("is not a whole number", hint="a whole number, such as 10")
    return value  # type: ignore[return-value]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingsError("is not a number", hint="a number, such as 0.8")
    try:
        return float(value)
    except OverflowError as error:
        raise SettingsError("is too large", hint="a number, such as 0.8") from error


def _tokens(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(map(_is_whole, value)):
        raise SettingsError("is not a list of tokens", hint="a list of at least one whole number")
    return tuple(value)


def _or_none(check: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else check(value)


# Settings that the page may send; null is the default.
SETTINGS: dict[str, Callable[[object], Any]] = {
    name: _or_none(check)
    for name, check in {
        "max_new_tokens": _whole_number,
        "temperature": _number,
        "top_k": _whole_number,
        "top_p": _number,
        "min_p": _number,
        "repetition_penalty": _number,
        "seed": _whole_number,
    }.items()
}
