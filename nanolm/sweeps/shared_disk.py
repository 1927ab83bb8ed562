"""Whether another process, possibly on another machine, sees a directory: it looks for a file with a random text."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from nanolm.files import create_temporary
from nanolm.untrusted import read_inside


@dataclasses.dataclass(frozen=True)
class Token:
    """A file to look for. It can be pickled.

    Attributes:
        path: absolute.
        text: its content. A file of the same name on another disk has another one.
    """

    path: Path
    text: str

    def is_visible(self) -> bool:
        """Return whether this process sees the file."""
        try:
            return read_inside(self.path, self.path.parent, len(self.text)) == self.text.encode()
        except OSError:
            return False


@contextlib.contextmanager
def token_in(directory: Path) -> Iterator[Token]:
    """Create a token in an existing directory, and remove it at the end of the block.

    One that a killed process leaves is removed by the next file that is written there.

    Raises:
        OSError: it cannot be created.
    """
    path, descriptor = create_temporary(directory.absolute() / "token")
    try:
        token = Token(path, secrets.token_hex(16))
        os.write(descriptor, token.text.encode())
        yield token
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
