"""Where a model is imported from: a folder in the Hugging Face format, or a name on the hub."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanolm.errors import NanolmError, RunError, SettingsError, raise_all
from nanolm.files import user_path
from nanolm.json_text import parse_object
from nanolm.untrusted import open_inside, read_inside

CONFIG = "config.json"

# A name on the hub, such as gpt2 or openai-community/gpt2.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)

# The index of a model with ten thousand shards has about as many bytes.
MAX_JSON_BYTES = 20_000_000

HINT = "name a folder with config.json, the weights (*.safetensors) and the tokenizer, or a model of the hub"


@dataclasses.dataclass(frozen=True)
class SourceFolder:
    """A folder in the Hugging Face format, whose content is not trusted.

    Attributes:
        path: the folder.
        root: the folder that links may not lead out of: `path`, or in the hub's cache that of the repository, whose
            snapshots are links.
        name: as the user typed it.
        revision: the commit on the hub; None for a folder.
        known_sha256: of files, by the hub.
    """

    path: Path
    root: Path
    name: str
    revision: str | None = None
    known_sha256: dict[str, str] = dataclasses.field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Return whether the folder has an entry of this name, which may be a broken link."""
        return os.path.lexists(self.path / name)

    def open(self, name: str) -> io.BufferedReader:
        """Open a regular file.

        Raises:
            RunError: it is missing, is not a regular file, or a link leads out of the folder.
        """
        try:
            return open_inside(self.path / name, self.root)
        except OSError as error:
            raise self._unreadable(name, error) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object.

        Raises:
            RunError: it cannot be read or is something else.
        """
        try:
            return parse_object(read_inside(self.path / name, self.root, MAX_JSON_BYTES))
        except OSError as error:
            raise self._unreadable(name, error) from error
        except ValueError as error:
            raise RunError(f"{name} is damaged: {error}", where=str(self.path / name), hint=HINT) from error

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file.

        Raises:
            RunError: it cannot be read, or is not the file that the hub has.
        """
        with self.open(name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.known_sha256.get(name, found):
            raise RunError(
                f"{name} is not the file of the hub: its SHA-256 is {found[:16]}... instead of "
                f"{self.known_sha256[name][:16]}...",
                where=os.path.realpath(self.path / name),
                hint="delete the file and import again: it is downloaded again",
            )
        return found

    def _unreadable(self, name: str, error: OSError) -> RunError:
        if isinstance(error, FileNotFoundError) and not self.has(name):
            return RunError(f"the folder has no {name}", where=str(self.path), hint=HINT)
        return RunError(f"{name} cannot be read: {error.strerror or error}", where=str(self.path / name), hint=HINT)


def find_source(source: str, revision: str | None, report: Callable[[str], None]) -> SourceFolder:
    """Return the folder of a model, which is downloaded if `source` is a name on the hub and no folder.

    Args:
        source: a folder, or a name on the hub.
        revision: a branch, tag or commit on the hub; None is its main branch.
        report: receives remarks.

    Raises:
        NanolmError: it does not exist, or cannot be downloaded.
    """
    path = user_path(source)
    if os.path.lexists(path):
        problems: list[NanolmError] = []
        if not path.is_dir():
            problems.append(RunError(f"{source} is not a folder", where="SOURCE", hint=HINT))
        if revision is not None:
            hint = "leave out --revision" + (f"; {path.absolute()} is a folder here" if is_hub_name(source) else "")
            problems.append(SettingsError("a folder has no revisions", where=f"--revision {revision}", hint=hint))
        raise_all(problems)
        return SourceFolder(path, _root(path), source)
    if not is_hub_name(source):
        raise RunError(f"there is no folder {source}", where="SOURCE", hint=HINT)
    from nanolm.interop.hub import download

    return download(source, revision, report)


def is_hub_name(source: str) -> bool:
    """Return whether a source that is no folder may be a name on the hub."""
    return _HUB_NAME.fullmatch(source) is not None


def _root(path: Path) -> Path:
    """Return the folder that links may lead to: in the cache of the hub, files of snapshots are links to its blobs."""
    repository = path.absolute().parents[1:2]
    is_snapshot = path.absolute().parent.name == "snapshots" and repository[0].name.startswith("models--")
    return repository[0] if is_snapshot else path
