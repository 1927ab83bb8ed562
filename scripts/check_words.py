"""Find words that nanolm's writing has retired.

    python scripts/check_words.py

Searches Python, Markdown, YAML, JavaScript and HTML files that git tracks for the patterns in pyproject.toml,
[tool.nanolm.retired-words], and prints each occurrence with the wording to use instead. Exit status 1: there are some.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {".css", ".html", ".js", ".md", ".py", ".yaml"}


def occurrences(text: str, retired: dict[str, str]) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, words found, what to write instead) for every retired pattern in a text.

    A pattern also matches across a line break and the comment sign after it.
    """
    for pattern, instead in retired.items():
        spread = pattern.replace(" ", r"(?:\s+(?:#\s+)?)")
        for match in re.finditer(rf"\b(?:{spread})\b", text, flags=re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, match[0], instead


def main() -> int:
    """Check every tracked file but pyproject.toml; return the exit status."""
    root = Path(__file__).resolve().parent.parent
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    retired = settings["tool"]["nanolm"]["retired-words"]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    found = 0
    for name in filter(None, listed.stdout.split("\0")):
        path = root / name
        if path.suffix not in SUFFIXES or not path.is_file():
            continue
        for line, words, instead in occurrences(path.read_text(encoding="utf-8"), retired):
            print(f"{name}:{line}: {' '.join(words.split())!r}: write {instead}")
            found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
