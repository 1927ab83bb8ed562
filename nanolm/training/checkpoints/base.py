"""The frozen base of a run with low-rank adapters, whose checkpoints contain the adapters only.

It is stored once in the run directory, so that the run can be copied and its parent removed. The manifest of every
checkpoint has its SHA-256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import shutil
from pathlib import Path

from nanolm.checksummed import is_sha256
from nanolm.errors import CheckpointError, NanolmError
from nanolm.files import REPLACEMENT, sync_folder, temporary_sibling
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints.header import TensorInfo, read_header
from nanolm.untrusted import open_inside


@dataclasses.dataclass(frozen=True)
class Base:
    """The base of a new run.

    Attributes:
        sha256: of the file.
        source: a file with this content, which is not changed; None if `content` is given.
        content: the content.
    """

    sha256: str
    source: Path | None = None
    content: bytes | None = None

    @classmethod
    def of_content(cls, content: bytes) -> Base:
        """Return the base with this content of a file."""
        return cls(hashlib.sha256(content).hexdigest(), content=content)

    def write(self, path: Path) -> None:
        """Write the file atomically, as a hard link to its source where the file system supports it.

        Raises:
            CheckpointError: the source has changed.
            OSError: the file cannot be written.
        """
        if os.path.lexists(path):
            # What a start that was killed has left.
            with contextlib.suppress(OSError):
                if _sha256(path) == self.sha256:
                    return
            path.unlink()
        temporary = temporary_sibling(path.with_name(REPLACEMENT))
        try:
            self._write(temporary)
            if _sha256(temporary) != self.sha256:
                raise _damaged(self.source or path, "has changed since it was read", "repeat the command")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    def _write(self, path: Path) -> None:
        if self.source is not None:
            # Weights are never changed in place, only replaced.
            with contextlib.suppress(OSError):
                os.link(os.path.realpath(self.source), path)
                return
        with path.open("xb") as file:
            if self.source is None:
                assert self.content is not None
                file.write(self.content)
            else:
                with open_inside(self.source, self.source.parent) as source:
                    shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())


def require_base(run: RunDirectory, sha256: str) -> dict[str, TensorInfo]:
    """Refuse a base that is missing or has changed.

    Args:
        sha256: of the file, by the manifest of a checkpoint.

    Returns:
        The shapes and dtypes of its tensors.

    Raises:
        CheckpointError: with the place of the same file in the run's parent, if it is known.
    """
    path = run.base
    try:
        status = path.stat()
        if _known_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns) == sha256:
            return read_header(path)
        problem = f"has changed: its SHA-256 is not {sha256[:16]}..."
    except OSError as error:
        problem = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        problem = f"is damaged: {error}"
    raise _damaged(path, problem, _hint(run, sha256))


def base_problem(run: RunDirectory, sha256: str | None) -> str:
    """Describe what is wrong with the base of a run; empty if nothing is, or if it has none."""
    try:
        if sha256 is not None:
            require_base(run, sha256)
    except CheckpointError as error:
        return error.found
    return ""


def _hint(run: RunDirectory, sha256: str) -> str:
    hint = "restore it from a copy of the run"
    with contextlib.suppress(NanolmError):
        parent = run.read_summary().parent or {}
        if parent.get("weights") == sha256 and is_sha256(sha256):
            folder = RunDirectory(parent["run"]).checkpoints / f"step-{parent['step']:08d}"
            hint += f", or copy {folder / 'model.safetensors'}, the parent's weights, to {run.base.name}"
    return hint


def _damaged(path: Path, problem: str, hint: str) -> CheckpointError:
    return CheckpointError(
        f"the frozen weights of the run, {path.name}: the file {problem}", where=str(path), hint=hint
    )


@functools.lru_cache(maxsize=4)
def _known_sha256(path: Path, inode: int, size: int, modified: int) -> str:
    """Return the SHA-256 of a file, which is read again if its status has changed."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    with open_inside(path, path.parent) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
