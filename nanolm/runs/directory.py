"""A run is a directory: where each thing lies in it, who may write to it, and writes that survive a crash."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from nanolm.errors import BusyError, RunError, explain_os_error
from nanolm.files import user_path, write_text, wrong_file_types
from nanolm.runs.metrics import MetricsRow, read_rows
from nanolm.runs.summary import Summary, read_summary


class RunDirectory:
    """The layout of a run. Everything that reads runs reads this and nothing else."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.tokenizer = self.path / "tokenizer.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples.jsonl"
        self.log = self.path / "train.log"
        self.error = self.path / "error.txt"
        self.profile = self.path / "profile.json"
        self.wandb = self.path / "wandb"
        self.lock = self.path / ".lock"

    def require_own(self) -> RunDirectory:
        """Itself, when nothing that a run writes to is a link, a device or another kind of file than it should be.

        Raises:
            RunError: with every name that is.
        """
        files = (self.config, self.metrics, self.summary, self.tokenizer, self.samples, self.log, self.error)
        folders = (self.checkpoints, self.wandb, self.path / ".hydra")
        if found := wrong_file_types(self.path, (*files, self.profile, self.lock), folders):
            raise RunError(
                f"a run cannot be written here: {', '.join(found)}",
                where=str(self.path),
                hint="nanolm writes neither through links nor to devices: put a copy in their place, "
                "or choose another folder with hydra.run.dir=",
            )
        return self

    def make(self) -> RunDirectory:
        """Itself, with its folder made, when it is its own (`require_own`).

        Raises:
            RunError: something in the folder is a link, or not the kind of file that a run has there.
            PathError: the folder cannot be made.
            DiskError: the same, because the disk is full or fails.
        """
        with _writing(self.path):
            self.require_own()
            self.path.mkdir(parents=True, exist_ok=True)
        return self

    @property
    def written(self) -> list[Path]:
        """Every file and folder that a run may write."""
        return [value for value in vars(self).values() if value != self.path]

    def exists(self) -> bool:
        """Whether a run was started here: its settings are the first thing written."""
        return self.config.exists()

    def require(self) -> RunDirectory:
        """Itself.

        Raises:
            RunError: there is no run here.
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
                hint="take config.yaml from a copy of the run; or repeat the settings that the run was started with, "
                f"with hydra.run.dir={self.path} resume=auto, which goes on with it and writes config.yaml again",
            )
        raise RunError(
            f"{self.path} is not a run directory" if self.path.exists() else f"there is no folder {self.path}",
            where=str(self.path),
            hint="name a folder that `nanolm train` made; it has a config.yaml" + _newest_run(self.path),
        )

    def read_summary(self) -> Summary:
        """Read summary.json; an empty summary where there is none yet.

        Raises:
            RunError: it cannot be read or is not a JSON object.
        """
        return read_summary(self.summary)

    def read_metrics(self, split: str | None = None) -> list[MetricsRow]:
        """Read the rows of metrics.jsonl, as `read_rows` does."""
        return read_rows(self.metrics, split)

    def is_claimed(self) -> bool:
        """Whether a process writes to this run now. To ask takes no part in the lock for longer than the answer."""
        try:
            import fcntl

            with open(self.lock, "rb", opener=_open_at_once) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        except (ImportError, OSError):
            # Without flock the lock is the file itself, or one that only filelock knows how to ask.
            return self._is_claimed_by_attempt()
        return False

    def _is_claimed_by_attempt(self) -> bool:
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except (Timeout, OSError):
            return True

    @contextlib.contextmanager
    def claim(self, patience: float = 0.0) -> Iterator[None]:
        """Makes this process the only writer. A folder that ends with no run in it is taken away again.

        Args:
            patience: seconds to wait for another process to let go.

        Raises:
            BusyError: another process writes here; it is named.
            RunError: something in the folder is a link, or not the kind of file that a run has there.
            PathError: the folder cannot be made or written to.
            DiskError: the same, because the disk is full or fails.
        """
        with _writing(self.path):
            self.require_own()
            made = _make_folders(self.path)
        # Read before the attempt: it names the writer in case this process is the second.
        holder = _read_text(self.lock)
        lock = FileLock(self.lock, timeout=patience)
        try:
            with _writing(self.path, passes=Timeout):
                lock.acquire()
        except Timeout as error:
            raise BusyError(
                f"another process writes to this run: {holder or 'unknown'}",
                where=str(self.path),
                hint="wait for it, stop it, or choose another folder with hydra.run.dir=",
            ) from error
        try:
            now = datetime.datetime.now().isoformat(timespec="seconds")
            command = " ".join(sys.argv[:1] + sys.argv[1:8])
            self._write_holder(f"process {os.getpid()} on {socket.gethostname()} since {now} ({command})")
            yield
        finally:
            started = self.exists()
            if not started:
                self._remove_lock()
            lock.release()
            if not started:
                self._remove_lock()
                for folder in reversed(made):
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def _write_holder(self, text: str) -> None:
        """Name this process in the lock, where the system can: Windows lets nobody write to a locked file."""
        with contextlib.suppress(OSError):
            # A copy of a run made of hard links shares its lock: the text would be another file's as well.
            if self.lock.lstat().st_nlink == 1:
                write_text(self.lock, text)

    def _remove_lock(self) -> None:
        with contextlib.suppress(OSError):
            self.lock.unlink(missing_ok=True)


def enclosing_run(path: Path) -> Path | None:
    """The run that a checkpoint, or another file or folder of a run, is a part of; None of any other path."""
    absolute = path.absolute()
    for folder in absolute.parents:
        run = RunDirectory(folder)
        if run.exists() and any(part in (absolute, *absolute.parents) for part in run.written):
            return shown(folder)
    return None


def shown(path: str | os.PathLike[str]) -> Path:
    """A path as people type it: from the current folder where it lies below it."""
    absolute = Path(path).absolute()
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def fresh(path: Path) -> Path:
    """Makes and returns `path`, or `path`_2, _3, ... when it is taken: no two runs get the same folder."""
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    for candidate in (path, *(path.with_name(f"{path.name}_{n}") for n in range(2, 10_000))):
        with contextlib.suppress(FileExistsError), _writing(candidate, passes=FileExistsError):
            candidate.mkdir()
            return candidate
    raise RunError(f"ten thousand folders are called {path}_N", where=str(path.parent), hint="remove some")


@contextlib.contextmanager
def _writing(path: Path, passes: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Say that a run directory cannot be made or written to, and why.

    Args:
        passes: what is raised as it is.
    """
    try:
        yield
    except passes:
        raise
    except OSError as error:
        what = "the run directory cannot be written to"
        raise explain_os_error(error, what, where=str(path), option="hydra.run.dir=FOLDER") from error


def _open_at_once(name: str, flags: int) -> int:
    """An opener that does not wait for the writer of a FIFO."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _make_folders(path: Path) -> list[Path]:
    """Makes a folder and its parents; returns those that may be removed again, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    # An empty folder that was made for this run a moment ago counts as made here.
    empty = [] if path in missing or any(path.iterdir()) else [path]
    return [*reversed(missing), *empty]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _newest_run(path: Path) -> str:
    """A hint at the newest run beside or below a path that is none."""
    runs: list[tuple[float, Path]] = []
    for folder in (path, path.parent):
        with contextlib.suppress(OSError):
            runs += [(config.stat().st_mtime, config.parent) for config in folder.glob("*/config.yaml")]
    return f"; the newest here is {max(runs)[1]}" if runs else ""
