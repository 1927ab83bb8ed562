"""Messages of launchers."""

from __future__ import annotations

import sys

from tqdm import tqdm

from nanolm.terminal import visible


def show(text: str) -> None:
    """Print a message on stderr, above the status line of the sweep."""
    tqdm.write(visible(text, multiline=True), file=sys.stderr)
