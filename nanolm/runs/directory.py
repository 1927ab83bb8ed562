"""The layout of a run directory, and its lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nanolm.errors import BusyError, NanolmError, RunError, explain_os_error
from nanolm.files import REPLACEMENT, remove_abandoned, remove_tree, user_path, write_text, wrong_file_types
from nanolm.lock_holders import Holder
from nanolm.locks import Lock, LockTimeout, describe, holder_of, is_held
from nanolm.runs.metrics import MetricsRow, iter_rows, thinned_rows
from nanolm.runs.summary import Summary, read_summary
from nanolm.soft_locks import soft_path

# How to choose another run directory, for hints.
RUN_OPTION = "hydra.run.dir=FOLDER"

# Parents of run directories that this process created.
_CREATED: set[Path] = set()


# The files and folders of a run.
NAMES = {
    "config": "config.yaml",
    "metrics": "metrics.jsonl",
    "summary": "summary.json",
    "tokenizer": "tokenizer.json",
    "base": "base.safetensors",
    "checkpoints": "checkpoints",
    "samples": "samples.jsonl",
    "log": "train.log",
    "error": "error.txt",
    "profile": "profile.json",
    "wandb": "wandb",
    "lock": ".lock",
    "soft_lock": soft_path(Path(".lock")).name,
}


class RunDirectory:
    """The paths of a run's files. Everything that reads or writes runs goes through this class."""

    config: Path
    metrics: Path
    summary: Path
    tokenizer: Path
    base: Path
    checkpoints: Path
    samples: Path
    log: Path
    error: Path
    profile: Path
    wandb: Path
    lock: Path
    soft_lock: Path

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)

    def __getattr__(self, name: str) -> Path:
        """Build a path when it is first used: commands that list thousands of runs use few of them."""
        if name not in NAMES:
            raise AttributeError(f"a run directory has no {name}")
        path = self.path / NAMES[name]
        setattr(self, name, path)
        return path

    def require_own(self) -> RunDirectory:
        """Return the directory, unless a path that a run writes to is a link, a device or of another wrong type.

        Raises:
            RunError: with all such paths.
        """
        folders = (self.checkpoints, self.wandb)
        files = [path for path in self.written if path not in folders]
        if found := wrong_file_types(self.path, files, (*folders, self.path / ".hydra")):
            raise RunError(
                f"a run cannot be written here: {', '.join(found)}",
                where=str(self.path),
                hint="nanolm does not write through links or to devices: replace them by copies, "
                "or choose another folder with hydra.run.dir=",
            )
        return self

    @property
    def written(self) -> list[Path]:
        """All files and folders that a run may write."""
        return [self.path / name for name in NAMES.values()]

    def exists(self) -> bool:
        """Return whether a run was started here: config.yaml is there."""
        return self.config.exists()

    def require(self) -> RunDirectory:
        """Return the directory if it is a run.

        Raises:
            RunError: it is not.
        """
        if self.exists():
            return self
        if (enclosing := enclosing_run(self.path)) is not None:
            raise RunError(
                f"{self.path} is not a run directory, but a part of one",
                where=str(self.path),
                hint=f"name the run itself: {enclosing}",
            )
        if any(self.checkpoints.glob("step-*/")):
            raise RunError(
                f"config.yaml is missing from {self.path}, which holds checkpoints",
                where=str(self.config),
                hint="restore config.yaml from a copy of the run; or repeat the command that started the run "
                f"with hydra.run.dir={self.path} resume=auto, which resumes it and writes config.yaml again",
            )
        raise RunError(
            f"{self.path} is not a run directory" if self.path.exists() else f"there is no folder {self.path}",
            where=str(self.path),
            hint="name a folder that `nanolm train` created; it has a config.yaml" + _newest_run(self.path),
        )

    def read_summary(self) -> Summary:
        """Read summary.json; an empty summary where there is none yet.

        Raises:
            RunError: it cannot be read or is not a JSON object.
        """
        return read_summary(self.summary)

    def read_metrics(self, split: str | None = None) -> list[MetricsRow]:
        """Read all rows of metrics.jsonl, or those of one split."""
        return list(self.iter_metrics(split))

    def iter_metrics(self, split: str | None = None) -> Iterator[MetricsRow]:
        """Yield the rows of metrics.jsonl, as `iter_rows` does."""
        return iter_rows(self.metrics, split)

    def read_thinned_metrics(self) -> list[MetricsRow]:
        """Read the rows of metrics.jsonl that curves need, as `thinned_rows` yields them."""
        return list(thinned_rows(self.metrics))

    def is_claimed(self) -> bool:
        """Return whether a process is writing to this run."""
        return is_held(self.lock)

    def holder(self) -> Holder | None:
        """Return the process that writes to this run, or the last one that did; None if it is not known."""
        return holder_of(self.lock)

    @contextlib.contextmanager
    def claim(self, timeout: float = 0.0) -> Iterator[None]:
        """Create the folder and lock the run for this process. New folders are removed if no run was started in them.

        Args:
            timeout: seconds to wait for another process to release the lock.

        Raises:
            BusyError: another process, which is named, is writing to this run.
            RunError: as `require_own`.
            PathError: the folder cannot be created, written to or locked.
            DiskError: the same, because the disk is full or fails.
        """
        with _writing(self.path):
            self.require_own()
            made = make_folders(self.path)
        lock = Lock(self.lock, RUN_OPTION)
        try:
            with _writing(self.path, passes=LockTimeout):
                lock.acquire(timeout)
        except LockTimeout as error:
            raise BusyError(
                f"another process writes to this run: {describe(error.holder)}",
                where=str(self.path),
                hint=f"{error.hint}; or choose another folder with hydra.run.dir=",
            ) from error
        except NanolmError:
            remove_empty(made)
            raise
        try:
            # Windows does not allow writing to a locked file.
            with contextlib.suppress(OSError):
                # A hard-linked copy of a run shares the lock file: writing would change the other run's too.
                if self.lock.lstat().st_nlink == 1:
                    write_text(self.lock, Holder.of_this_process().format())
            self._remove_leftovers()
            yield
        finally:
            started = self.exists()
            if not started:
                self._remove_lock()
            lock.release()
            if not started:
                self._remove_lock()
                remove_empty(made)

    def _remove_leftovers(self) -> None:
        """Remove the temporary files of killed processes. Only the holder of the run's lock writes those of folders."""
        remove_abandoned(self.path, REPLACEMENT)
        for path in (*self.path.glob(".dry-run-*"), *self.checkpoints.glob(".step-*.tmp")):
            remove_tree(path, ignore_errors=True)

    def _remove_lock(self) -> None:
        with contextlib.suppress(OSError):
            self.lock.unlink(missing_ok=True)


def enclosing_run(path: Path) -> Path | None:
    """Return the run that a path is a part of, such as one of its checkpoints; None for any other path."""
    absolute = path.absolute()
    for folder in absolute.parents:
        run = RunDirectory(folder)
        if run.exists() and any(part in (absolute, *absolute.parents) for part in run.written):
            return display_path(folder)
    return None


def display_path(path: str | os.PathLike[str]) -> Path:
    """Return a path relative to the current folder if it is below it, and absolute otherwise."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def create_unique_folder(path: Path) -> Path:
    """Create and return `path`, or the first of `path`_2, `path`_3, ... that does not exist."""
    with _writing(path.parent):
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        _CREATED.update(missing)
    for candidate in (path, *(path.with_name(f"{path.name}_{n}") for n in range(2, 10_000))):
        with contextlib.suppress(FileExistsError), _writing(candidate, passes=FileExistsError):
            candidate.mkdir()
            return candidate
    raise RunError(f"there are ten thousand folders named {path}_N", where=str(path.parent), hint="remove some")


@contextlib.contextmanager
def _writing(path: Path, passes: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Translate an OSError while a run directory is written to.

    Args:
        passes: exceptions that are not translated.
    """
    try:
        yield
    except passes:
        raise
    except OSError as error:
        what = "the run directory cannot be written to"
        raise explain_os_error(error, what, where=str(path), option=RUN_OPTION) from error


def make_folders(path: Path) -> list[Path]:
    """Create a folder and its parents; return those that may be removed again if they are empty, outermost first."""
    missing = [folder for folder in (path, *path.parents) if folder in _CREATED or not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    # An empty folder was probably created for this run by Hydra.
    empty = [] if path in missing or any(path.iterdir()) else [path]
    return [*reversed(missing), *empty]


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, outermost first in the list, that are empty."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _newest_run(path: Path) -> str:
    """A hint naming the newest run next to or below a path."""
    runs: list[tuple[float, Path]] = []
    for folder in (path, path.parent):
        with contextlib.suppress(OSError):
            runs += [(config.stat().st_mtime, config.parent) for config in folder.glob("*/config.yaml")]
    return f"; the newest here is {max(runs)[1]}" if runs else ""
