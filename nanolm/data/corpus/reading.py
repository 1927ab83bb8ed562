"""Reading of files as strict UTF-8, long ones in parts."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from nanolm.data.corpus.formats import recognise
from nanolm.errors import DataError

# Longer files are read in parts of about this size.
PART_BYTES = 2**21
# Text is NUL-heavy if it has at least this many NULs, and more than this share of NULs.
NUL_COUNT, NUL_SHARE = 4, 0.01


class Part(NamedTuple):
    """A document, or a part of a long one, cut after a line end.

    Attributes:
        text: of any length.
        ends: whether the part is the end of its document.
        scored: whether the loss includes the part; the prompts of dataset=instructions are only inputs.
    """

    text: str
    ends: bool = True
    scored: bool = True


def read_utf8(path: Path, *, allow_nul: bool = False, hint: str = "") -> Iterator[Part]:
    """Yield the text of a file, with its line ends and byte order mark unchanged.

    A long file is read in parts of about PART_BYTES, cut after line ends; a longer line is not cut.

    Args:
        allow_nul: whether to accept NUL-heavy text; otherwise each block of PART_BYTES is checked.
        hint: appended to the hint of the error for a file that is not text.

    Raises:
        DataError: it cannot be read, has bytes that are not UTF-8, or is NUL-heavy.
    """
    try:
        with path.open("rb") as file:
            yield from _decoded(file, path, allow_nul, hint)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError, where: str = "") -> DataError:
    """Return the error for a file or folder that cannot be read; by default, `where` is its path."""
    is_dangling = isinstance(error, FileNotFoundError) and path.is_symlink()
    return DataError(
        f"a dangling link: {error.strerror}" if is_dangling else f"this cannot be read: {error.strerror}",
        where=where or str(path),
        hint="remove it, make it readable, or choose a path or a glob without it",
    )


def is_nul_heavy(text: str) -> bool:
    """Whether a text has so many NULs that it is probably not text."""
    n_nul = text.count("\0")
    return n_nul >= NUL_COUNT and n_nul > NUL_SHARE * len(text)


def nul_error(text: str, what: str, where: str, hint: str) -> DataError:
    """Return the error for NUL-heavy text; `what` describes it, and `hint` has alternatives to dataset.nul=allow."""
    return DataError(
        f"{what}: {text.count(chr(0)):,} of {len(text):,} characters are NUL",
        where=where,
        hint=f"{hint}; dataset.nul=allow accepts it",
    )


def _decoded(file: IO[bytes], path: Path, allow_nul: bool, hint: str) -> Iterator[Part]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held: list[str] = []
    offset = 0
    while True:
        block = file.read(PART_BYTES)
        # Bytes in the decoder of a character that the end of the last block cut.
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
