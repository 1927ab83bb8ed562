"""What a run wrote as it learned: samples.txt, read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# A sample may have such a line of its own making; the steps of a file rise, and those of a model's writing hardly do.
HEADING = re.compile(r"^--- step (\d+)\n", re.MULTILINE)


class Sample(NamedTuple):
    """What the model wrote at a step."""

    step: int
    text: str


def read(path: Path) -> list[Sample]:
    """The samples in the order of their steps; none where there is no file, or nothing was written yet.

    A heading whose step is not above the one before it is the model's own writing, and stays in its sample.
    """
    try:
        content = path.read_bytes().decode("utf-8", errors="replace")
    except OSError:
        return []
    headings: list[re.Match[str]] = []
    for heading in HEADING.finditer(content):
        if not headings or int(heading[1]) > int(headings[-1][1]):
            headings.append(heading)
    if not headings:
        return []
    ends = [*(heading.start() for heading in headings[1:]), len(content)]
    return [
        Sample(int(heading[1]), content[heading.end() : end].removesuffix("\n\n"))
        for heading, end in zip(headings, ends, strict=True)
    ]
