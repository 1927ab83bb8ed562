"""The rich console and the table style of every command."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from nanolm import terminal


class Console(RichConsole):
    """Print on stdout without highlighting numbers and paths. Control characters in any text are escaped."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, width=terminal.width(), **settings)

    def on_broken_pipe(self) -> None:
        """Leave a broken pipe to the command, where rich would exit with status 1."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with control characters escaped."""
        for segment in super().render(renderable, options):
            if segment.control or not terminal.CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(terminal.visible(segment.text, multiline=True), segment.style)


class Table(RichTable):
    """An aligned table. Strings are printed literally: no markup, and line breaks are escaped.

    Args:
        headings: one per column; all empty: no heading is printed.
        alignment: a letter per column, "l" or "r" as in LaTeX's tabular; in upper case, its cells are not wrapped.
    """

    def __init__(self, headings: Sequence[str], alignment: str) -> None:
        super().__init__(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=any(headings))
        for heading, letter in zip(headings, alignment, strict=True):
            justify = "right" if letter in "rR" else "left"
            self.add_column(Text(heading), justify=justify, no_wrap=letter.isupper(), overflow="fold")  # type: ignore[arg-type]

    def add_row(self, *cells: RenderableType | None, style: Any = None, end_section: bool = False) -> None:
        """Add a row of strings, or of renderables such as `cell`."""
        literal = (cell(item) if isinstance(item, str) else item for item in cells)
        super().add_row(*literal, style=style, end_section=end_section)


def cell(text: str, style: str = "") -> Text:
    """Return a literal text: no markup, and line breaks escaped."""
    return Text(terminal.visible(text), style)
