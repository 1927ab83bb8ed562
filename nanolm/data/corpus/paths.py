"""The files that a path setting names: a file, a folder or a glob."""

from __future__ import annotations

import glob
from pathlib import Path

from nanolm.errors import DataError


def files_of(pattern: str) -> list[Path]:
    """A file, the files in a folder (hidden ones left out) or of a glob, in the order of their paths."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (file for file in sorted(path.rglob("*")) if file.is_file())
        files = [file for file in inside if not any(p.startswith(".") for p in file.relative_to(path).parts)]
        if not files:
            raise DataError("the folder has no files", where=str(path), mend="dataset.path= a folder with text in it")
        return files
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    files = [match for match in matches if match.is_file()]
    if not files:
        raise DataError(
            f"there is no file, folder or match of {pattern!r}",
            where=f"dataset.path, looked for from {Path.cwd()}",
            mend="name an existing file or folder, or a glob such as 'notes/**/*.md'",
        )
    return files
