"""Files as strict UTF-8 text, long ones in parts."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from nanolm.data.corpus.formats import recognise
from nanolm.errors import DataError

# A file with more bytes than this is read in parts of about this size.
PART_BYTES = 2**21
# Text is NUL-heavy from this many NULs on, where they are more than this share of its characters.
NUL_COUNT, NUL_SHARE = 4, 0.01


class Part(NamedTuple):
    """A document, or a part of a long one, cut behind a line end.

    Attributes:
        text: of any length.
        ends: whether the document ends with it.
    """

    text: str
    ends: bool = True


def read_utf8(path: Path, *, allow_nul: bool = False, hint: str = "") -> Iterator[Part]:
    """The text of a file, line ends and byte order mark as they stand.

    A long file comes in parts of about PART_BYTES, cut behind line ends; a line that is longer than that stays whole.

    Args:
        path: the file.
        allow_nul: read NUL-heavy text as it stands; otherwise each stretch of PART_BYTES is checked.
        hint: what else can be done about a file that is no text, appended to the hint of the error.

    Raises:
        DataError: it cannot be read, has bytes that are not UTF-8, or is NUL-heavy.
    """
    try:
        with path.open("rb") as file:
            yield from _decoded(file, path, allow_nul, hint)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not let nanolm read."""
    return DataError(
        f"cannot read the file: {error.strerror}",
        where=str(path),
        hint="make it readable, or choose a path or a glob without it",
    )


def is_nul_heavy(text: str) -> bool:
    """Whether so much of a text is NUL that it is hardly text."""
    n_nul = text.count("\0")
    return n_nul >= NUL_COUNT and n_nul > NUL_SHARE * len(text)


def nul_error(text: str, what: str, where: str, hint: str) -> DataError:
    """The error for NUL-heavy text.

    Args:
        text: the text.
        what: what it is, in front of the count.
        where: the file or document.
        hint: what can be done besides dataset.nul=allow.
    """
    return DataError(
        f"{what}: {text.count(chr(0)):,} of {len(text):,} characters are NUL",
        where=where,
        hint=f"{hint}; dataset.nul=allow reads it as it stands",
    )


def _decoded(file: IO[bytes], path: Path, allow_nul: bool, hint: str) -> Iterator[Part]:
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
            kind = recognise(path, at)
            raise DataError(
                f"byte {at} (0x{error.object[error.start]:02x}) is not UTF-8: {error.reason}; "
                f"the file looks like {kind.name}",
                where=f"{path}, byte offset {at}",
                hint="; ".join(filter(None, [kind.hint, hint])),
            ) from error
        if not allow_nul and is_nul_heavy(decoded):
            kind = recognise(path, is_utf8=True)
            raise nul_error(
                decoded, f"the file looks like {kind.name}", str(path), "; ".join(filter(None, [kind.hint, hint]))
            )
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
