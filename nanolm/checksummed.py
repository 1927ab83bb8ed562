"""Folders of files with checksums, which appear under their name only when they are complete and on disk.

Each has a manifest.json with the size and the SHA-256 of every other file and a SHA-256 of the manifest itself, so that
a missing, truncated or altered file is detected and named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from nanolm.files import open_held_folder, remove_abandoned, remove_tree, sync_folder, temporary_sibling
from nanolm.json_text import dump_json
from nanolm.untrusted import open_inside, read_inside

MANIFEST = "manifest.json"
# The manifest of a stream has 150 bytes per shard of 2^26 tokens; that of a checkpoint, all settings of the run.
MAX_MANIFEST_BYTES = 4_000_000


@dataclasses.dataclass(frozen=True)
class Damage:
    """A file that is not as it was written, with a problem such as "is missing"."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


class ChecksummedFile:
    """A file of a FolderWriter whose checksum is computed while it is written."""

    def __init__(self, path: Path, entries: dict[str, dict[str, Any]]) -> None:
        self.name = path.name
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._entries = entries

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes, or the bytes of a contiguous array."""
        self._file.write(content)
        self._sha256.update(content)

    def finish(self) -> None:
        """Flush the file to disk, close it and record its checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._entries[self.name] = {"bytes": self._file.tell(), "sha256": self._sha256.hexdigest()}
        self._file.close()

    def close(self) -> None:
        """Close the file without recording it, as after an error. A second call does nothing."""
        with contextlib.suppress(OSError):
            self._file.close()


class FolderWriter:
    """Writes a folder under a temporary name and renames it when it is complete and on disk.

    Used as a context manager: leaving it closes its files, and without `commit` removes what was written.

    Args:
        target: the folder to write; its parent exists.

    Attributes:
        path: the temporary folder, on the same file system as the target.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = temporary_sibling(target)
        self._entries: dict[str, dict[str, Any]] = {}
        self._files: list[ChecksummedFile] = []

    def open(self, name: str) -> ChecksummedFile:
        """Create a file to be written in parts; it becomes part of the folder when it is finished."""
        self._files.append(ChecksummedFile(self.path / name, self._entries))
        return self._files[-1]

    def add(self, name: str) -> None:
        """Record a file that is already in `path`, and flush it to disk."""
        with (self.path / name).open("rb+") as file:
            os.fsync(file.fileno())
        self._entries[name] = _describe(self.path / name)

    def commit(self, manifest: dict[str, Any], move_existing_to: Path | None = None) -> None:
        """Write the manifest, flush everything to disk and rename the folder to its target.

        Args:
            manifest: facts about the folder; its files and checksums are added.
            move_existing_to: the new name of a folder that is at the target; None: there is none.
        """
        with (self.path / MANIFEST).open("wb") as file:
            file.write(_manifest_bytes({**manifest, "files": self._entries}))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.path)
        if move_existing_to is not None:
            self.target.rename(move_existing_to)
        self.path.rename(self.target)
        sync_folder(self.target.parent)

    def __enter__(self) -> Self:
        # What killed writers of other folders left. The name of a target may be anything.
        remove_abandoned(self.target.parent, r".+")
        self.path.mkdir()
        self._descriptor = open_held_folder(self.path)
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.close()
        remove_tree(self.path, ignore_errors=True)
        if self._descriptor is not None:
            os.close(self._descriptor)


def remove_leftovers(folder: Path, names: str) -> None:
    """Remove what killed writers left of targets that match a glob; no other process may be writing one of them."""
    for path in folder.glob(f".{names}.tmp"):
        remove_tree(path, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest without its own checksum, or None if it is missing or damaged. No other file is read.

    Its files are plain names in the folder, each with its size and checksum; its other entries are not checked.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        content = read_inside(folder / MANIFEST, folder, MAX_MANIFEST_BYTES)
        manifest = json.loads(content)
        del manifest["sha256"]
        # Whoever can alter the manifest can compute its checksum, too.
        if content == _manifest_bytes(manifest) and all(_is_file_entry(*item) for item in manifest["files"].items()):
            return manifest
    return None


def find_damage(folder: Path) -> Iterator[Damage]:
    """Read every byte of a folder and compare it with its manifest; sizes are compared before any checksum.

    Yields:
        Each damaged file. A missing or damaged manifest is reported alone.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        yield Damage(MANIFEST, "is damaged" if os.path.lexists(folder / MANIFEST) else "is missing")
        return
    candidates = []
    for name, written in manifest["files"].items():
        try:
            with open_inside(folder / name, folder) as file:
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            yield _unreadable(name, error)
            continue
        if size == written["bytes"]:
            candidates.append((name, written["sha256"]))
        else:
            yield Damage(name, f"has {size:,} bytes, and was written with {written['bytes']:,}")
    for name, sha256 in candidates:
        try:
            found = _describe(folder / name)["sha256"]
        except OSError as error:
            yield _unreadable(name, error)
            continue
        if found != sha256:
            yield Damage(name, f"has been altered (SHA-256 {found[:16]}..., written as {sha256[:16]}...)")


def is_sha256(value: object) -> bool:
    """Return whether a value is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_size(value: object) -> bool:
    """Return whether a value is a number of bytes, steps or tokens: an int that is not negative and fits 64 bits."""
    return type(value) is int and 0 <= value < 2**63


def _is_file_entry(name: str, entry: dict[str, Any]) -> bool:
    is_plain = name not in ("", ".", "..", MANIFEST) and not any(character in name for character in "/\\:\0")
    return is_plain and is_size(entry["bytes"]) and is_sha256(entry["sha256"])


def _manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Serialize a manifest together with its checksum; the bytes are a function of the content."""
    sha256 = hashlib.sha256(dump_json(manifest, sort_keys=True).encode()).hexdigest()
    return (dump_json({**manifest, "sha256": sha256}, indent=2) + "\n").encode()


def _unreadable(name: str, error: OSError) -> Damage:
    missing = isinstance(error, FileNotFoundError)
    return Damage(name, "is missing" if missing else f"cannot be read: {error.strerror}")


def _describe(path: Path) -> dict[str, Any]:
    with open_inside(path, path.parent) as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
