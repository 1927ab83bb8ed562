"""Describe settings as text, for `nanolm train --help` and for the comments in YAML files."""

from __future__ import annotations

import dataclasses
import enum
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nanolm.config.fields import BOUNDS, MISSING, alternatives, enum_of, flat, plain, setting_of
from nanolm.config.run import SETTING_GROUPS

# A space at which no line is broken.
NO_BREAK = "\xa0"

# Columns of the settings in the help, before their documentation.
KEY_COLUMNS = 36

_KINDS = {int: "integer", float: "number"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A setting of a schema, ready to be shown.

    Attributes:
        name: of the field.
        doc: documentation.
        constraint: kind and bounds, such as "integer >= 1"; empty for booleans, strings and enums.
        choices: members of an enum, as in fields.Choice.
        value: plain; MISSING if the user must give it.
        default: of the schema, plain.
        children: the settings of a nested dataclass; its value is a mapping of theirs.
    """

    name: str
    doc: str
    constraint: str
    choices: tuple[enum.Enum, ...]
    value: Any
    default: Any
    children: tuple[Entry, ...] = ()


def entries(schema: type[Any], values: Mapping[str, Any] | None = None) -> list[Entry]:
    """Describe the settings of a schema, except its name and the groups of Config.

    Args:
        schema: a dataclass.
        values: plain values by field name; those that are missing have their defaults.
    """
    values = values or {}
    hints = typing.get_type_hints(schema)
    found = []
    for field in dataclasses.fields(schema):
        if field.name in ("name", *SETTING_GROUPS):
            continue
        kinds = alternatives(hints[field.name])
        declared = setting_of(field)
        default = _default(field)
        value = values.get(field.name, default)
        nested = dataclasses.is_dataclass(kinds[0])
        found.append(
            Entry(
                name=field.name,
                doc=declared.doc,
                constraint=_constraint(kinds, declared.bounds),
                choices=tuple(enum_of(kinds) or ()),
                value=value,
                default=default,
                children=tuple(entries(kinds[0], value)) if nested else (),
            )
        )
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if default is dataclasses.MISSING:
        return MISSING
    return flat(default) if dataclasses.is_dataclass(default) else plain(default)


def _constraint(kinds: Sequence[Any], bounds: Mapping[str, float]) -> str:
    """The kind and the bounds of a number, such as "integer >= 1" or "0 <= number < 1", or the kind of a list."""
    for kind in kinds:
        if kind in _KINDS:
            limits = [(BOUNDS[name][1], _number(limit)) for name, limit in bounds.items()]
            if len(limits) == 2:
                (_, low), (sign, high) = limits
                return f"{low} {'<=' if 'ge' in bounds else '<'} {_KINDS[kind]} {sign} {high}"
            return " ".join([_KINDS[kind], *(part for limit in limits for part in limit)])
        if typing.get_origin(kind) is list:
            return {str: "list of strings", int: "list of integers"}.get(typing.get_args(kind)[0], "list")
    return ""


def _number(limit: float) -> str:
    return "2**63" if limit == 2**63 else str(limit)


def first_sentence(schema: type[Any]) -> str:
    """Return the first line of a schema's docstring; an empty string without one."""
    text = schema.__doc__ or ""
    # dataclasses writes a docstring of the signature where there is none.
    return "" if text.startswith(f"{schema.__name__}(") else text.strip().split("\n")[0]


def format_value(value: Any) -> str:
    """Format a plain value as YAML on one line, as it can be typed on the command line."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e-0", "e-")
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    return str(value)


def render_settings(
    schema: type[Any],
    values: Mapping[str, Any] | None = None,
    prefix: str = "",
    width: int = 100,
    explains_choices: bool = False,
) -> str:
    """Render the settings of a schema as aligned text: key=value, documentation, bounds and choices.

    Args:
        schema, values: as for entries.
        prefix: of the keys, such as "optimizer.".
        width: columns.
        explains_choices: whether to give each choice its documentation, instead of only its name.
    """
    return "".join(f"{line}\n" for line in _rows(entries(schema, values), prefix, width, explains_choices))


def notes(entry: Entry) -> str:
    """Return the kind, the bounds and the default of a setting, in parentheses; an empty string if there are none."""
    found = [entry.constraint] if entry.constraint else []
    if entry.value == MISSING:
        found.append("required")
    elif entry.default not in (MISSING, entry.value):
        found.append(f"default: {format_value(entry.default)}")
    return f" ({'; '.join(found)})".replace(" ", NO_BREAK).replace(NO_BREAK, " ", 1) if found else ""


def wrap(text: str, width: int, start: str = "") -> list[str]:
    """Wrap a text into lines. The first one begins with `start`, the others with as many spaces."""
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace(NO_BREAK, " ") for line in lines] or [start.rstrip()]


def _rows(listed: Sequence[Entry], prefix: str, width: int, explains_choices: bool) -> Iterator[str]:
    for entry in listed:
        if entry.children:
            yield from _rows(entry.children, f"{prefix}{entry.name}.", width, explains_choices)
            continue
        text = entry.doc
        if entry.choices and not explains_choices:
            text += f" One of {', '.join(choice.name for choice in entry.choices)}."
        value = "..." if entry.value == MISSING else format_value(entry.value)
        yield from _row(f"  {prefix}{entry.name}={value}", text + notes(entry), width)
        if explains_choices:
            yield from (" " * KEY_COLUMNS + line for line in choice_lines(entry, width - KEY_COLUMNS))


def choice_lines(entry: Entry, width: int) -> list[str]:
    """List the choices of a setting, one per line or more, with their documentation."""
    longest = max((len(choice.name) for choice in entry.choices), default=0)
    lines: list[str] = []
    for choice in entry.choices:
        lines += wrap(getattr(choice, "doc", ""), width, start=f"  {choice.name:<{longest}}  ")
    return lines


def _row(key: str, text: str, width: int) -> list[str]:
    """A key and its wrapped text; the text starts on the next line if the key is too long."""
    if len(key) > KEY_COLUMNS - 2:
        return [key, *wrap(text, width, start=" " * KEY_COLUMNS)]
    return wrap(text, width, start=key.ljust(KEY_COLUMNS))
