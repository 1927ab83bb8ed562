"""Pictures as PNG files, drawn by matplotlib, which is an extra."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nanolm.errors import SettingsError, install_hint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def importing_matplotlib() -> Iterator[None]:
    """Around its imports.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise SettingsError(
            "the PNG is drawn by matplotlib, which is not installed", where="--png", hint=install_hint("plot")
        ) from error


def encode(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
