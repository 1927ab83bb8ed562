"""The rich console of every command: its width, and control characters that are shown instead of obeyed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from nanolm import terminal


class Console(RichConsole):
    """Prints on stdout, without colouring numbers and paths. Control characters in any text are escaped."""

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


def cell(text: str, style: str = "") -> Text:
    """A table cell or a line of text as it stands: no markup, and line breaks escaped."""
    return Text(terminal.visible(text), style)
