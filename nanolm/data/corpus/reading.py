"""Files as strict UTF-8 text, long ones in parts."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from nanolm.errors import DataError

# A file with more bytes than this is read in parts of about this size.
PART_BYTES = 2**21


class Part(NamedTuple):
    """A document, or a part of a long one, cut behind a line end.

    Attributes:
        text: of any length.
        ends: whether the document ends with it.
    """

    text: str
    ends: bool = True


def read_utf8(path: Path) -> Iterator[Part]:
    """The text of a file, line ends and byte order mark as they stand.

    A long file comes in parts of about PART_BYTES, cut behind line ends; a line that is longer than that stays whole.

    Raises:
        DataError: it cannot be read, or has bytes that are not UTF-8.
    """
    try:
        with path.open("rb") as file:
            yield from _decoded(file, path)
    except OSError as error:
        raise DataError(f"cannot read the file: {error.strerror}", where=str(path)) from error


def _decoded(file: IO[bytes], path: Path) -> Iterator[Part]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held: list[str] = []
    offset = 0
    while True:
        block = file.read(PART_BYTES)
        # What the decoder holds of a character that the last block cut.
        pending = len(decoder.getstate()[0])
        try:
            decoded = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = offset - pending + error.start
            raise DataError(
                f"byte {at} (0x{error.object[error.start]:02x}) is not UTF-8: {error.reason}",
                where=f"{path}, byte offset {at}",
                mend=f"convert it, for example: iconv -f latin1 -t utf-8 {path.name}; "
                "in a folder, name the text files alone with a glob such as 'folder/**/*.txt'",
            ) from error
        offset += len(block)
        if not block:
            yield Part("".join(held) + decoded, True)
            return
        cut = decoded.rfind("\n") + 1
        if cut and offset >= PART_BYTES:
            yield Part("".join(held) + decoded[:cut], False)
            held = [decoded[cut:]]
        else:
            held.append(decoded)
