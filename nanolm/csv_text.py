"""CSV whose cells a spreadsheet shows, and never evaluates as formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Spreadsheets evaluate a cell that begins with one of these; the full-width signs in some languages.
_FORMULA = re.compile(r"[=+\-@\t\r\n＝＋－＠]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|-inf", re.ASCII)
# Separators of every locale, and line breaks: a cell with one of them is quoted.
_SEPARATOR = re.compile(r'[,;\t\r\n"]')


def csv_line(cells: Iterable[object]) -> str:
    """Format a row, without the line end. None is an empty cell.

    A text that a spreadsheet would evaluate is preceded by an apostrophe; numbers are exact and unchanged.
    """
    return ",".join(map(_cell, cells))


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if _SEPARATOR.search(text) else text
