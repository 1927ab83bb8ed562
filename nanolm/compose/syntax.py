"""Rewrite overrides as typed into Hydra's grammar: paths need no quotes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Sequence

from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError

from nanolm.compose.overrides import SWEEP_OPTIONS, is_readable, parse, quoted
from nanolm.config.fields import MISSING, setting_of
from nanolm.config.interpolation import escape
from nanolm.config.launch import AUTO, BOOLEANS, NEVER, Launch
from nanolm.config.run import Config
from nanolm.files import user_path
from nanolm.registry import GROUPS

# Settings of Hydra that are paths.
_DIRECTORIES = ("hydra.run.dir", "hydra.sweep.dir")

# These have no effect: no experiment and no sweep file is chosen by default.
_NO_EFFECT = ("experiment=null", "sweep=null")

_FUNCTION = re.compile(
    r"(choice|range|interval|glob|shuffle|sort|tag|str|int|float|bool|extend_list)\s*\(.*\)", re.DOTALL
)

# An escape sequence of Hydra's grammar.
_HYDRA_ESCAPE = re.compile(r"\\[\\()\[\]{}:=, \t]")

# Commas inside of these do not separate values.
_WHOLE = re.compile(r"""'(?:\\.|[^'\\])*'(?=\s*(?:,|$))|"(?:\\.|[^"\\])*"(?=\s*(?:,|$))""", re.DOTALL)
_BRACES = re.compile(r"\$\{[^}]*\}")


def to_hydra_syntax(overrides: Sequence[str], multirun: bool = False) -> list[str]:
    """Rewrite overrides as typed into Hydra's grammar. Overrides that are in it already do not change.

    Paths are taken literally, whatever characters they have, unless they are quoted or contain an interpolation.
    `plugins=module` becomes a list, `sweep.fail_fast` a setting of the sweeper, and `experiment=null` is dropped.

    Args:
        overrides: as typed.
        multirun: whether commas separate values. An existing path with a comma in its name is one value.
    """
    return [_rewrite(text, multirun) for text in overrides if text not in _NO_EFFECT]


def path_fields() -> dict[str, bool]:
    """Return the settings that are paths, and whether every option accepts null for them."""
    schemas = [(group, schema) for group, registry in GROUPS.items() for schema in registry.schemas.values()]
    found: dict[str, bool] = {}
    for prefix, schema in [("", Config), ("", Launch), *((f"{group}.", schema) for group, schema in schemas)]:
        for field in dataclasses.fields(schema):
            if setting_of(field).is_path:
                key = f"{prefix}{field.name}"
                found[key] = found.get(key, True) and "None" in str(field.type)
    return found


def _rewrite(text: str, multirun: bool) -> str:
    key, sign, value = text.partition("=")
    if key in SWEEP_OPTIONS:
        return f"{SWEEP_OPTIONS[key]}{sign}{value}"
    name = key.lstrip("+")
    if name == "plugins" and re.fullmatch(r"\w+(\.\w+)*", value) and value.lower() != "null":
        return f"{key}=[{value}]"
    if name == "hydra.launcher.gpus" and re.fullmatch(r"\d+(,\d+)+", value):
        # Numbers with commas are one value, and not several of a sweep.
        return f"{key}={quoted(value)}"
    if name == "hydra.searchpath":
        return f"{key}={_search_path(value)}"
    if not value or (name not in _DIRECTORIES and name not in (fields := path_fields())):
        return text
    is_optional = name not in _DIRECTORIES and fields[name]
    one = functools.partial(_one_path, name, is_optional)
    if _exists(value) or _FUNCTION.fullmatch(value):
        return f"{key}={one(value)}" if _exists(value) else text
    parts = _parts(value)
    if len(parts) > 1 and name in _DIRECTORIES and multirun:
        return text
    if len(parts) > 1 and (multirun or all(map(_exists, parts))):
        return f"{key}=" + ",".join(map(one, parts))
    return f"{key}={one(value)}"


def _search_path(value: str) -> str:
    """Rewrite one folder, or a list of folders, into a list in Hydra's grammar."""
    is_list = value.startswith("[") and is_readable(f"key={value}")
    folders = parse([f"key={value}"])[0].value() if is_list else [value.strip("'\"")]
    if not all(isinstance(folder, str) and folder for folder in folders) or "${" in value:
        return value
    plain = [folder.removeprefix("file://") for folder in folders]
    paths = [folder if "://" in folder else f"file://{user_path(folder)}" for folder in plain]
    return f"[{','.join(map(quoted, paths))}]"


def _one_path(key: str, is_optional: bool, value: str) -> str:
    """Quote one path, unless it is in Hydra's grammar already."""
    is_word = (key == "resume" and value in (NEVER, AUTO)) or (key == "fork" and value.lower() in BOOLEANS)
    if is_word or (value.lower() == "null" and (is_optional or not _exists(value))):
        return value
    if not _exists(value):
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        is_escaped = bool(_HYDRA_ESCAPE.search(value))
        if (is_quoted or is_escaped) and is_readable(f"{key}={value}"):
            return value
        if "${" in value:
            # An interpolation, if OmegaConf can parse it, whatever it resolves to.
            with contextlib.suppress(GrammarParseError):
                OmegaConf.create({"value": value})
                return quoted(value)
    return quoted(f"./{value}" if value == MISSING else escape(value))


def _parts(value: str) -> list[str]:
    """Split at commas outside of quotes and interpolations."""
    parts, at, begin = [], 0, 0
    while at < len(value):
        is_at_begin = not value[begin:at].strip()
        if (whole := (_WHOLE.match(value, at) if is_at_begin else None) or _BRACES.match(value, at)) is not None:
            at = whole.end()
        elif value[at] == ",":
            parts.append(value[begin:at])
            at = begin = at + 1
        else:
            at += 1
    parts.append(value[begin:])
    return [part if _exists(part) else part.strip() for part in parts]


def _exists(value: str) -> bool:
    try:
        return os.path.lexists(user_path(value))
    except ValueError:  # a NUL in it
        return False
