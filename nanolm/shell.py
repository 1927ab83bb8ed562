"""Commands as a person can paste them into a shell."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from nanolm.terminal import CONTROL


def quote(word: str) -> str:
    r"""Quote a word for bash and zsh.

    Returns:
        The word as shlex.quote quotes it, or as $'a\012b' if it has characters that the console cannot show: control
        characters, undecodable bytes, and what its encoding lacks.
    """
    if all(map(_is_shown, word)):
        return shlex.quote(word)
    return "$'" + "".join(_ESCAPED.get(one, one) if _is_shown(one) else _octal(one) for one in word) + "'"


_ESCAPED = {"\\": "\\\\", "'": "\\'"}


def _is_shown(character: str) -> bool:
    if CONTROL.match(character):
        return False
    try:
        character.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _octal(character: str) -> str:
    """The bytes of an argument; three octal digits are read alike whatever follows, other than \\x in some shells."""
    try:
        content = os.fsencode(character)
    except UnicodeEncodeError:
        content = character.encode()
    return "".join(f"\\{byte:03o}" for byte in content)


def join(*words: str) -> str:
    """Join words to a command line."""
    return " ".join(map(quote, words))


def path_argument(path: str | os.PathLike[str]) -> str:
    """Put ./ before a path that a command would take for an option, a home folder, a quoted string or a keyword."""
    text = str(path)
    is_special = text.startswith(("-", "~", "'", '"')) or text in ("auto", "never")
    return f"./{text}" if is_special and not Path(text).is_absolute() else text


def resume_command(path: str | os.PathLike[str], *overrides: str) -> str:
    """The command that continues a run."""
    return join("nanolm", "train", f"resume={path_argument(path)}", *overrides)


def generate_command(path: str | os.PathLike[str], prompt: str, plugins: Sequence[str] = ()) -> str:
    """The command that lets a run continue a prompt."""
    modules = ["--plugins", *plugins] if plugins else []
    # A prompt that begins with a dash would be taken for an option.
    words = [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    return join("nanolm", "generate", path_argument(path), *modules, *words)
