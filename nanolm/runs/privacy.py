"""Leave names of persons, machines and folders, and secrets, out of values that are sent to others."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import re
import socket
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

# A user name, password or token in the address of a server.
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+@")
# What follows the path of an address: signed links have their secret there.
_QUERY = re.compile(r"(?<=://)([^\s?'\"]*)(?:\?[^\s'\"]*)?")
# A home folder of any machine.
_HOMES = r"(?:/home|/Users|/var/home|[A-Za-z]:[/\\]+Users)[/\\]+"
_HOME = re.compile(rf"(?<=['\"]){_HOMES}[^/\\'\"\n]+|(?<![\w.:/]){_HOMES}[^/\\\s'\":]+")
# The folders of an absolute path: between quotes, or without spaces.
_FOLDERS = re.compile(
    r"(?<=['\"])(?:[A-Za-z]:[/\\]|/)(?:[^'\"/\\\n]+[/\\]+)+"
    r"|(?<![\w.~:/*-])/(?:[\w.@%+=,-]+/+)+"
    r"|(?<!\w)[A-Za-z]:\\(?:[^'\"\\\s]+\\+)+"
)

# Characters of a text that are sent at most.
MAX_TEXT = 10_000


def plain(value: Any) -> Any:
    """Copy a tree of dicts, lists and plain values, in which wandb finds no instructions.

    wandb fetches artifacts that a text names, from any server, and keeps its own values under keys that start with _.
    Credentials in addresses are left out.
    """
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items() if not str(key).startswith("_")}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, str):
        return value
    if len(value) > MAX_TEXT:
        value = f"{value[:MAX_TEXT]}..."
    return _CREDENTIALS.sub("", value).replace("wandb-artifact://", "wandb-artifact: //")


def private(value: Any) -> Any:
    """Copy a tree as `plain` does, without names of the machine, the user and their folders.

    A home folder becomes ~. Of other absolute paths, only the last part is kept; relative paths stay as they are.
    """
    if isinstance(value, dict):
        return {key: private(item) for key, item in plain(value).items()}
    if isinstance(value, list | tuple):
        return [private(item) for item in value]
    return _private_text(plain(value)) if isinstance(value, str) else value


def _private_text(text: str) -> str:
    if not any(mark in text for mark in "/\\@"):
        return text
    text = _QUERY.sub(r"\1", text).replace("file:///", "/")
    for home in _homes():
        text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w-])", "~", text)
    for path in (PurePosixPath(text), PureWindowsPath(text)):
        if path.is_absolute() and "\n" not in text:
            text = "~" if _HOME.fullmatch(text) else path.name or text
    text = _FOLDERS.sub("", _HOME.sub("~", text))
    for name, replacement in _names().items():
        text = re.sub(rf"(?:(?<=[/\\@:])|^){re.escape(name)}(?=[/\\@:]|$)", replacement, text)
    return text


def _homes() -> list[str]:
    """The home folder, also with its links resolved; the longest first."""
    homes: set[str] = set()
    with contextlib.suppress(RuntimeError):
        homes = {str(Path.home()), os.path.realpath(Path.home())}
    return sorted((home for home in homes if home != os.sep), key=len, reverse=True)


@functools.cache
def _names() -> dict[str, str]:
    """The names of this user and machine, and the words that replace them in paths."""
    host = socket.gethostname()
    names = {host: "host", host.partition(".")[0]: "host"}
    # There may be no such user, as in some containers.
    with contextlib.suppress(OSError, KeyError, ImportError):
        names[getpass.getuser()] = "user"
    return {name: word for name, word in names.items() if name and name != "localhost"}
