"""Standard streams: encodings, broken pipes, control characters and the width of the terminal.

`prepare` is called once, at the start of the command. Progress and messages are best effort: training continues when
the console cannot be written. A command whose output is its result fails if it cannot be written.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import select
import sys
from pathlib import Path
from typing import Any, TextIO

from nanolm.errors import DiskError

DEFAULT_WIDTH = 80
# A smaller reported width is treated as unknown: it could not show a table.
MIN_WIDTH = 20
MAX_WIDTH = 10_000
# Seconds to wait for a console that accepts no output, such as a full pipe.
WRITE_TIMEOUT = 1.0

# Replacements for consoles that cannot show a character.
ASCII = {
    **dict.fromkeys("–—−─━═╌╴╶╸╺╼╾‐‑", "-"),
    **dict.fromkeys("│┃║╎", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰╞╡╪╔╗╚╝╠╣╦╩╬┏┓┗┛┣┫┳┻╋", "+"),
    **dict.fromkeys("·•∙", "."),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("█▉▊▋▌▍▎▏▓■▀▄▐▖▗▘▙▚▛▜▝▞▟", "#"),
    **dict.fromkeys("▁▂▃▅▆▇▒", "="),
    "░": ".",
    "±": "+-",
    "×": "x",
    "†": "+",
    "…": "...",
    "→": "->",
    "←": "<-",
    "\u2800": " ",
    **{chr(code): "*" for code in range(0x2801, 0x2900)},
}

# C0 and C1 controls, DEL, line separators, bidirectional formatting, and lone surrogates (undecodable bytes).
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str, *, multiline: bool = False) -> str:
    r"""Escape control characters, so that a terminal shows them instead of interpreting them.

    Args:
        text: a name, a setting or a sample: anything from a file or a model.
        multiline: whether to keep line feeds and tabs.

    Returns:
        The text with \x1b in place of an escape character, and so on.
    """
    if text.isprintable():
        return text

    def escape(match: re.Match[str]) -> str:
        character = match[0]
        code = ord(character)
        if multiline and character in "\n\t":
            return character
        if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
            code -= 0xDC00
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return CONTROL.sub(escape, text)


def write(text: str) -> None:
    """Print a text on stdout: unchanged to a file or a pipe, with control characters escaped on a terminal."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    print(visible(text, multiline=True) if is_terminal else text, flush=True)


def write_part(text: str) -> None:
    """Print a part of a text on stdout, as `write` does but without a line end."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    print(visible(text, multiline=True) if is_terminal else text, end="", flush=True)


def say(text: str) -> None:
    """Print a message on stderr, with control characters escaped; write errors are ignored."""
    with contextlib.suppress(OSError):
        print(visible(text, multiline=True), file=sys.stderr, flush=True)


def width() -> int:
    """Return the columns of the terminal: COLUMNS, else as reported, else 80. Values below 20 are ignored."""
    text = os.environ.get("COLUMNS", "")
    found = [int(text)] if text.isascii() and text.isdigit() else []
    for stream in (sys.__stdout__, sys.__stderr__, sys.__stdin__):
        try:
            found.append(os.get_terminal_size(stream.fileno()).columns)  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            continue
    return next((min(columns, MAX_WIDTH) for columns in found if columns >= MIN_WIDTH), DEFAULT_WIDTH)


class _Output(io.FileIO):
    """A descriptor that Python does not close; if it is best effort, write errors are ignored."""

    def __init__(self, descriptor: int, is_best_effort: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_best_effort = is_best_effort

    def write(self, data: Any, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe, or a terminal, that does not block
                if not select.select([], [self], [], WRITE_TIMEOUT)[1] and self.is_best_effort:
                    return len(data)
            return written
        except OSError as error:
            if self.is_best_effort:
                return len(data)
            if isinstance(error, BrokenPipeError):
                raise
            raise DiskError(f"the output cannot be written: {error.strerror or error}", where="stdout") from error


def open_output(
    descriptor: int,
    encoding: str = "utf-8",
    errors: str = "strict",
    *,
    is_best_effort: bool = False,
    line_buffering: bool = True,
    write_through: bool = False,
) -> io.TextIOWrapper:
    """Open a descriptor for text in any encoding; characters that cannot be encoded are replaced.

    Args:
        descriptor: stays open when the stream is closed.
        encoding: encoding of the console.
        errors: an error handler chosen by the user; Python's defaults ("strict", "surrogateescape" and
            "backslashreplace") are replaced by ours.
        is_best_effort: whether to ignore write errors.
        line_buffering, write_through: as for io.TextIOWrapper.

    Raises:
        BrokenPipeError: from a write, if not best effort: the reader has closed the pipe.
        DiskError: from a write, if not best effort: for example, the disk is full.
    """
    if errors in ("strict", "surrogateescape", "backslashreplace"):
        errors = "nanolm.ascii"
    buffer = io.BufferedWriter(_Output(descriptor, is_best_effort))
    return io.TextIOWrapper(
        buffer, encoding, errors, line_buffering=line_buffering or write_through, write_through=write_through
    )


def prepare() -> None:
    """Make the standard streams safe. Call it before any file is opened.

    Closed descriptors are opened on the null device, so that no other file gets their numbers. Stderr becomes best
    effort. An invalid COLUMNS is removed from the environment, for libraries that read it. Streams that were replaced
    by a notebook or a test are not changed.
    """
    _open_closed_descriptors()
    if str(width()) != os.environ.get("COLUMNS"):
        os.environ.pop("COLUMNS", None)
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115  for as long as the process
    sys.stdout = _prepared(sys.stdout, sys.__stdout__, 1, is_best_effort=False)
    sys.stderr = _prepared(sys.stderr, sys.__stderr__, 2, is_best_effort=True)


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows more than text."""
    # A kernel has imported IPython; nothing else has to.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def ignore_write_errors() -> None:
    """Make stdout best effort too, for commands whose results are files: training continues without its console."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Output):
        raw.is_best_effort = True


def _prepared(stream: TextIO | None, original: TextIO | None, descriptor: int, is_best_effort: bool) -> TextIO:
    """Return the replacement of a standard stream, or the stream if it was replaced before."""
    if stream is None:
        return open_output(descriptor, is_best_effort=is_best_effort)
    is_prepared = isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Output)
    if stream is not original or not isinstance(stream, io.TextIOWrapper) or is_prepared:
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    return open_output(
        stream.fileno(),
        stream.encoding,
        stream.errors or "strict",
        is_best_effort=is_best_effort,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _open_closed_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            # Child processes need them too.
            os.set_inheritable(descriptor, True)


def _replace(error: UnicodeError) -> tuple[str, int]:
    r"""Handle an encoding error: similar ASCII characters, \xNN for undecodable bytes, else "?"."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    shown = (ASCII.get(one) or (visible(one) if CONTROL.match(one) else "?") for one in characters)
    return "".join(shown), error.end


codecs.register_error("nanolm.ascii", _replace)
