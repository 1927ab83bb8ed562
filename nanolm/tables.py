"""The rich console and the table style of every command."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style, StyleType
from rich.table import Table as RichTable
from rich.text import Text

from nanolm import terminal

# Rows from which a table is long, and the least width of a column that is broken into lines in one.
LONG = 500
MIN_WRAPPED = 8


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
            if segment.control or segment.text.removesuffix("\n").isprintable():
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
        self._given: list[tuple[tuple[RenderableType | None, ...], Any, bool]] = []

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """Lay out a long table line by line: rich takes a millisecond for each row."""
        if len(self._given) < LONG:
            self._fill()
            yield from RichTable.__rich_console__(self, console, options)
            return
        rows = [
            [_styled(item) for item in (*cells, *[""] * (len(self.columns) - len(cells)))] for cells, *_ in self._given
        ]
        heads = [str(column.header) for column in self.columns]
        widths = [
            max(_length(line) for text in [head, *(row[at][0] for row in rows)] for line in text.split("\n"))
            for at, head in enumerate(heads)
        ]
        can_wrap = [not column.no_wrap for column in self.columns]
        # Each column has a space on either side, and the last one more.
        while sum(widths) + 2 * len(widths) + 1 > options.max_width and any(can_wrap):
            widest = max(range(len(widths)), key=lambda at: (can_wrap[at], widths[at]))
            if widths[widest] <= MIN_WRAPPED:
                break
            widths[widest] -= 1
        layout = list(zip(widths, [column.justify == "right" for column in self.columns], strict=True))
        find_style = functools.cache(lambda row, text: console.get_style(row) + console.get_style(text))
        yield Segment("\n")
        if self.show_header:
            n_lines = max(head.count("\n") for head in heads)
            # Headings end on one line.
            bold = find_style("", "bold")
            yield from _long_row([("\n" * (n_lines - head.count("\n")) + head, bold) for head in heads], layout)
            yield Segment(f" {'─' * (sum(widths) + 2 * len(widths) - 1)} \n")
        for cells, (_, style, end_section) in zip(rows, self._given, strict=True):
            yield from _long_row([(text, find_style(style or "", its_style)) for text, its_style in cells], layout)
            yield from [Segment("\n")] if end_section else []
        yield Segment("\n")

    def __rich_measure__(self, console: RichConsole, options: ConsoleOptions) -> Measurement:
        self._fill()
        return super().__rich_measure__(console, options)

    def add_row(self, *cells: RenderableType | None, style: Any = None, end_section: bool = False) -> None:
        """Add a row of strings, or of renderables such as `cell`."""
        self._given.append((cells, style, end_section))

    def _fill(self) -> None:
        """Convert the rows to those of rich, which a long table does without."""
        for cells, style, end_section in self._given[self.row_count :]:
            literal = (cell(item) if isinstance(item, str) else item for item in cells)
            super().add_row(*literal, style=style, end_section=end_section)


def cell(text: str, style: str = "") -> Text:
    """Return a literal text: no markup, and line breaks escaped."""
    return Text(terminal.visible(text), style)


def _styled(item: RenderableType | None) -> tuple[str, StyleType]:
    if isinstance(item, Text):
        return item.plain, item.style
    return terminal.visible(str(item or "")), ""


def _length(line: str) -> int:
    return len(line) if line.isascii() else cell_len(line)


def _long_row(cells: Sequence[tuple[str, Style]], layout: Sequence[tuple[int, bool]]) -> Iterator[Segment]:
    """The lines of a row of a long table.

    Args:
        cells: text and style for each column; lines that are longer than the column are broken anywhere.
        layout: width of each column, and whether it is right-aligned.
    """
    lines = [_broken(text, width) for (text, _), (width, _) in zip(cells, layout, strict=True)]
    for at in range(max(map(len, lines))):
        unstyled = ""
        for (width, is_right), column, (_, style) in zip(layout, lines, cells, strict=True):
            text = column[at] if at < len(column) else ""
            space = " " * (width - _length(text))
            padded = f" {space}{text} " if is_right else f" {text}{space} "
            if style:
                yield Segment(unstyled)
                yield Segment(padded, style)
                unstyled = ""
            else:
                unstyled += padded
        yield Segment(f"{unstyled}\n")


def _broken(text: str, width: int) -> list[str]:
    if len(text) <= width and text.isascii() and "\n" not in text:
        return [text]
    return [part for line in text.split("\n") for part in chop_cells(line, width) or [""]]
