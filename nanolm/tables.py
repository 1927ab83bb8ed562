"""The rich console and the table style of every command."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, chop_cells
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import StyleType
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

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        """Lay out a long table line by line: rich takes a millisecond for each row."""
        if self.row_count < LONG:
            yield from RichTable.__rich_console__(self, console, options)
            return
        columns = [[_as_text(item) for item in (column.header, *column.cells)] for column in self.columns]
        widths = [max(max(map(cell_len, text.plain.split("\n"))) for text in column) for column in columns]
        can_wrap = [not column.no_wrap for column in self.columns]
        # Each column has a space on either side, and the last one more.
        while sum(widths) + 2 * len(widths) + 1 > options.max_width and any(can_wrap):
            widest = max(range(len(widths)), key=lambda at: (can_wrap[at], widths[at]))
            if widths[widest] <= MIN_WRAPPED:
                break
            widths[widest] -= 1
        layout = list(zip(widths, [column.justify == "right" for column in self.columns], strict=True))
        yield Segment("\n")
        if self.show_header:
            heads = [column[0] for column in columns]
            n_lines = max(text.plain.count("\n") for text in heads)
            # Headings end on one line.
            heads = [Text("\n" * (n_lines - text.plain.count("\n")) + text.plain, "bold") for text in heads]
            yield from _long_row(heads, layout, "", console)
            yield Segment(f" {'─' * (sum(widths) + 2 * len(widths) - 1)} \n")
        for at, row in enumerate(self.rows, start=1):
            yield from _long_row([column[at] for column in columns], layout, row.style or "", console)
            yield from [Segment("\n")] if row.end_section else []
        yield Segment("\n")

    def add_row(self, *cells: RenderableType | None, style: Any = None, end_section: bool = False) -> None:
        """Add a row of strings, or of renderables such as `cell`."""
        literal = (cell(item) if isinstance(item, str) else item for item in cells)
        super().add_row(*literal, style=style, end_section=end_section)


def cell(text: str, style: str = "") -> Text:
    """Return a literal text: no markup, and line breaks escaped."""
    return Text(terminal.visible(text), style)


def _as_text(item: RenderableType) -> Text:
    return item if isinstance(item, Text) else Text(str(item))


def _long_row(
    cells: Sequence[Text], layout: Sequence[tuple[int, bool]], style: StyleType, console: RichConsole
) -> Iterator[Segment]:
    """The lines of a row of a long table.

    Args:
        cells: one per column; lines that are longer than the column are broken anywhere.
        layout: width of each column, and whether it is right-aligned.
        style: of the row.
    """
    lines = [_broken(text.plain, width) for text, (width, _) in zip(cells, layout, strict=True)]
    styles = [console.get_style(style) + console.get_style(text.style) for text in cells]
    for at in range(max(map(len, lines))):
        for (width, is_right), column, its_style in zip(layout, lines, styles, strict=True):
            text = column[at] if at < len(column) else ""
            space = " " * (width - cell_len(text))
            yield Segment(f" {space}{text} " if is_right else f" {text}{space} ", its_style)
        yield Segment("\n")


def _broken(text: str, width: int) -> list[str]:
    return [part for line in text.split("\n") for part in chop_cells(line, width) or [""]]
