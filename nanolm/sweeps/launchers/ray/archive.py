"""A run directory as a tar archive that travels from one machine to another.

The receiver trusts nothing: the archive is unpacked only if its checksum is right, it may contain regular files below
the names of a run's files only, and nothing in it is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from nanolm.errors import RunError
from nanolm.files import open_held_folder, remove_abandoned, remove_tree, temporary_sibling
from nanolm.runs.directory import RunDirectory

# Bytes that travel at a time.
CHUNK = 16 * 2**20

# In this order the files of a run replace those of an earlier state of it, so that a kill in between leaves a run that
# was killed: rows may be newer than the last checkpoint, and summary.json is what says that a run is complete.
ORDER = (
    *("tokenizer.json", "base.safetensors", "config.yaml", "metrics.jsonl", "samples.jsonl", "train.log"),
    *("profile.json", "wandb", "checkpoints", "error.txt", "summary.json"),
)
# Folders, whose entries are replaced one by one.
FOLDERS = ("wandb", "checkpoints")

# A name that every file system has; in a tar archive, a colon or a backslash could name a path on Windows.
NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,255}")
MAX_DEPTH = 20
MAX_FILES = 100_000


@dataclasses.dataclass(frozen=True)
class Seal:
    """What an archive is compared with.

    Attributes:
        n_bytes: its size.
        sha256: its checksum, in hexadecimal.
    """

    n_bytes: int
    sha256: str


def pack(run: RunDirectory) -> Iterator[bytes | Seal]:
    """Yield the archive of a run in chunks, and then its seal. Links, and files that are not a run's, are left out.

    Raises:
        OSError: a file cannot be read, or changes.
    """
    digest, n_bytes, chunk = hashlib.sha256(), 0, bytearray()
    for block in _blocks(run):
        digest.update(block)
        n_bytes += len(block)
        chunk += block
        if len(chunk) >= CHUNK:
            yield bytes(chunk)
            chunk.clear()
    if chunk:
        yield bytes(chunk)
    yield Seal(n_bytes, digest.hexdigest())


def _blocks(run: RunDirectory) -> Iterator[bytes]:
    for path in _files(run):
        with path.open("rb") as file:
            info = tarfile.TarInfo(path.relative_to(run.path).as_posix())
            info.size = os.fstat(file.fileno()).st_size
            yield info.tobuf(tarfile.PAX_FORMAT)
            left = info.size
            while left:
                block = file.read(min(left, 2**20))
                if not block:
                    raise OSError(f"{path} became shorter while it was read")
                left -= len(block)
                yield block
            yield bytes(-info.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _files(run: RunDirectory) -> Iterator[Path]:
    for name in ORDER:
        path = run.path / name
        found = [path]
        if name in FOLDERS and path.is_dir() and not path.is_symlink():
            # A killed process leaves hidden ones.
            found = [each for entry in sorted(path.iterdir()) if entry.name[0] != "." for each in _within(entry)]
        yield from (each for each in found if each.is_file() and not each.is_symlink())


def _within(path: Path) -> list[Path]:
    return sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]


def unpack(chunks: Iterable[bytes | Seal], folder: Path) -> None:
    """Write the files of an archive to a new folder, if the archive is as it was sealed.

    Args:
        chunks: what `pack` yielded.
        folder: does not exist; its parent does.

    Raises:
        RunError: the archive is incomplete or damaged, or has something else than the files of a run.
        OSError: a file cannot be written.
    """
    archive = temporary_sibling(folder)
    try:
        with archive.open("xb") as file:
            _receive(chunks, file)
        with archive.open("rb") as file:
            _extract(file, folder)
    finally:
        archive.unlink(missing_ok=True)


def _receive(chunks: Iterable[bytes | Seal], file: IO[bytes]) -> None:
    """Write an archive to a file.

    Raises:
        RunError: it is not as it was sealed.
    """
    digest, n_bytes, seal = hashlib.sha256(), 0, None
    for chunk in chunks:
        if seal is not None:
            raise _refused("it continues after its end")
        if isinstance(chunk, Seal):
            seal = chunk
            continue
        file.write(chunk)
        digest.update(chunk)
        n_bytes += len(chunk)
    if seal is None:
        raise _refused(f"it ends after {n_bytes:,} bytes")
    if seal != Seal(n_bytes, digest.hexdigest()):
        raise _refused(f"it has {n_bytes:,} bytes with another checksum than the {seal.n_bytes:,} sent")


def _extract(file: IO[bytes], folder: Path) -> None:
    folder.mkdir()
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for n_files, member in enumerate(archive):
                name = _checked_name(member)
                if n_files >= MAX_FILES:
                    raise _refused(f"it has more than {MAX_FILES:,} files")
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None
                with path.open("xb") as target:
                    while block := content.read(2**20):
                        target.write(block)
                    target.flush()
                    os.fsync(target.fileno())
    except (tarfile.TarError, ValueError, EOFError) as error:
        if isinstance(error, RunError):
            raise
        raise _refused(str(error)) from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _refused("it has a name twice") from error


def _checked_name(member: tarfile.TarInfo) -> str:
    """Return the name of a file of a run.

    Raises:
        RunError: it is something else, or its name leads elsewhere.
    """
    parts = member.name.split("/")
    if not member.isreg() or member.issparse():
        raise _refused(f"{member.name!r} is not a regular file")
    if any(part in ("", ".", "..") or NAME.fullmatch(part) is None for part in parts) or len(parts) > MAX_DEPTH:
        raise _refused(f"{member.name!r} is not the name of a file")
    if parts[0] not in ORDER or (len(parts) > 1) != (parts[0] in FOLDERS):
        raise _refused(f"{member.name!r} is not a file of a run")
    return str(PurePosixPath(*parts))


def _refused(problem: str) -> RunError:
    return RunError(
        f"the archive of a run was refused: {problem}",
        hint="repeat the command; if it happens again, look for a fault in the network or the memory of the machines",
    )


def receive(chunks: Iterable[bytes | Seal], run: RunDirectory) -> None:
    """Replace the files of a run, which this process has claimed, by those of an archive.

    A damaged archive changes nothing, and a kill at any moment leaves a run that can be resumed.

    Raises:
        RunError: as in `unpack`.
        OSError: a file cannot be written.
    """
    parent, name = run.path.parent, "nanolm-archive"
    remove_abandoned(parent, name)
    outer = temporary_sibling(parent / name)
    outer.mkdir()
    descriptor = open_held_folder(outer)
    try:
        unpack(chunks, outer / "run")
        (outer / "replaced").mkdir()
        _replace(run, outer / "run", outer / "replaced")
    finally:
        if descriptor is not None:
            os.close(descriptor)
        remove_tree(outer, ignore_errors=True)


def _replace(run: RunDirectory, new: Path, replaced: Path) -> None:
    for name in ORDER:
        if name not in FOLDERS:
            _move(new / name, run.path / name, replaced / name)
            continue
        own, other = _entries(run.path / name), _entries(new / name)
        if other:
            (run.path / name).mkdir(exist_ok=True)
        # New checkpoints appear before old ones disappear.
        for entry in sorted(other, key=lambda entry: (entry in own, entry)):
            _move(new / name / entry, run.path / name / entry, replaced / f"{name}-{entry}")
        for entry in own - other:
            (run.path / name / entry).rename(replaced / f"{name}-{entry}")


def _move(source: Path, target: Path, replaced: Path) -> None:
    """Move a file or folder over another one, or remove that if there is no new one."""
    if source.is_dir() or not source.exists():
        with contextlib.suppress(FileNotFoundError):
            target.rename(replaced)
    if source.exists():
        source.replace(target)


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
