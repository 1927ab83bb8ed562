"""Shell commands for users to copy, with arguments quoted for bash and zsh."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nanolm.terminal import CONTROL


def quote(argument: str) -> str:
    r"""Quote an argument for bash and zsh.

    Returns:
        The result of shlex.quote, or $'a\012b' if the console cannot show a character: a control character, an
        undecodable byte, or one outside of the console's encoding.
    """
    if (argument.isascii() and argument.isprintable()) or all(map(_is_printable, argument)):
        return shlex.quote(argument)
    return "$'" + "".join(_ESCAPED.get(c, c) if _is_printable(c) else _octal(c) for c in argument) + "'"


_ESCAPED = {"\\": "\\\\", "'": "\\'"}


def _is_printable(character: str) -> bool:
    if CONTROL.match(character):
        return False
    try:
        character.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _octal(character: str) -> str:
    r"""Escape the bytes of a character by three octal digits, which end unambiguously; \x does not in some shells."""
    try:
        content = os.fsencode(character)
    except UnicodeEncodeError:
        content = character.encode("utf-8", "surrogatepass")
    return "".join(f"\\{byte:03o}" for byte in content)


def join(*arguments: str) -> str:
    """Quote and join arguments to a command line."""
    return " ".join(map(quote, arguments))


def path_argument(path: str | os.PathLike[str]) -> str:
    """Prefix a path with ./ if it could be read as an option, a home folder, a quoted string or a keyword."""
    text = str(path)
    is_special = text.startswith(("-", "~", "'", '"')) or text in ("auto", "never")
    return f"./{text}" if is_special and not Path(text).is_absolute() else text


def resume_command(path: str | os.PathLike[str], *overrides: str) -> str:
    """Return the command that resumes a run."""
    return join("nanolm", "train", f"resume={path_argument(path)}", *overrides)


def generate_command(path: str | os.PathLike[str], prompt: str, plugins: Sequence[str] = ()) -> str:
    """Return the command that generates text from a prompt."""
    modules = ["--plugins", *plugins] if plugins else []
    # A prompt that begins with a dash would be parsed as an option.
    arguments = [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    return join("nanolm", "generate", path_argument(path), *modules, *arguments)
