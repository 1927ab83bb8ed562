"""Texts that travel to machines which do not have them.

A text travels as the bytes of its files, and is written to files with the same names below a new folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanolm.config.fields import setting_of
from nanolm.data.corpus.paths import find_files
from nanolm.errors import DataError
from nanolm.files import user_path
from nanolm.wording import format_bytes

# Bytes of a text that travels at most, and of it at a time.
MAX_BYTES = 2**30
CHUNK = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of a text.

    Attributes:
        path: absolute.
        name: relative to the folder that the setting names, or that its glob searches.
    """

    path: Path
    name: str
    n_bytes: int
    sha256: str

    def is_here(self) -> bool:
        """Return whether the file is on this machine under the same path."""
        try:
            if self.path.stat().st_size != self.n_bytes:
                return False
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False


@dataclasses.dataclass(frozen=True)
class Text:
    """The files of a path setting.

    Attributes:
        value: of the setting.
        absolute: the same, as an absolute path.
        relative: the value for a copy, relative to its folder.
        files: in reading order.
    """

    value: str
    absolute: str
    relative: str
    files: tuple[TextFile, ...]

    @property
    def n_bytes(self) -> int:
        """The size of all files."""
        return sum(file.n_bytes for file in self.files)

    @property
    def is_small(self) -> bool:
        """Whether it may travel."""
        return self.n_bytes <= MAX_BYTES


def path_settings(dataset: Any) -> dict[str, str]:
    """Return the settings of a dataset that name files, by name; those that are null are left out."""
    fields = (field.name for field in dataclasses.fields(dataset) if setting_of(field).is_path)
    return {name: value for name in fields if isinstance(value := getattr(dataset, name), str)}


def find_text(value: str) -> Text | None:
    """Return the files of a path setting; None if there are none on this machine, as for a name on a hub.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        paths = list(find_files(value).files)
    except DataError:
        return None
    absolute = user_path(value).absolute()
    if absolute.is_file():
        root, relative = absolute.parent, absolute.name
    elif absolute.is_dir():
        root, relative = absolute, ""
    else:
        # The components before the first with a wildcard are a folder.
        fixed = itertools.takewhile(lambda parent: parent.is_dir(), reversed(absolute.parents))
        root = list(fixed)[-1]
        relative = str(absolute.relative_to(root))
    files = []
    for path in (path.absolute() for path in paths):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(TextFile(path, str(path.relative_to(root)), path.stat().st_size, digest))
    return Text(value, str(absolute), relative, tuple(files))


def read_chunks(text: Text) -> Iterator[bytes]:
    """Yield the bytes of all files, one after another."""
    for each in text.files:
        with each.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def place(text: Text, chunks: Iterable[bytes] | None, folder: Path) -> str:
    """Return the value of the path setting on this machine, and write the files there unless they are here already.

    Args:
        chunks: what `read_chunks` yielded on the other machine; None if the text does not travel.
        folder: does not exist; for a copy.

    Raises:
        DataError: it is not here and does not travel, or something else arrived.
        OSError: a file cannot be written.
    """
    if all(file.is_here() for file in text.files):
        return text.absolute
    if chunks is None:
        raise DataError(
            f"{socket.gethostname()} does not have the text, whose {format_bytes(text.n_bytes)} are more than the "
            f"{format_bytes(MAX_BYTES)} that are sent to it",
            where=text.value,
            hint=f"copy it to the same path on every node: {text.absolute}",
        )
    content = iter(chunks)
    rest = b""
    for each in text.files:
        path = folder / each.name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, left = hashlib.sha256(), each.n_bytes
        with path.open("xb") as file:
            while left and (rest := rest or next(content, b"")):
                block, rest = rest[:left], rest[left:]
                left -= len(block)
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != each.sha256:
            raise DataError(
                f"{each.name} changed on its way to {socket.gethostname()}",
                where=text.value,
                hint="run the command again when no process writes to it",
            )
    return str(folder / text.relative)
