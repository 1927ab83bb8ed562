"""The field of a row that has the text."""

from __future__ import annotations

from typing import Any

from nanolm.errors import DataError


def text_in(row: dict[str, Any], field: str, where: str) -> str:
    """Return the text of one field of a row.

    Raises:
        DataError: there is no such field, or it holds something else.
    """
    if isinstance(row.get(field), str):
        return row[field]
    if field not in row:
        found, choices = f"there is no field {field!r}", list(row)
    else:
        found = f"the field {field!r} holds {type(row[field]).__name__}, not text"
        choices = [name for name, value in row.items() if isinstance(value, str)]
    hint = f"set dataset.field to one of: {', '.join(map(str, choices)) or 'none'}"
    raise DataError(found, where=where, hint=hint)
