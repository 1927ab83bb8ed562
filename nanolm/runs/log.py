"""The output of a run: metrics.jsonl, samples.jsonl, train.log, the progress bar and the experiment logger."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from nanolm import shell
from nanolm.errors import DiskError, RunError, write_failure
from nanolm.files import hash_prefix, open_regular
from nanolm.runs.directory import RunDirectory
from nanolm.runs.loggers import Logger, NoLogger
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.records import encode_row
from nanolm.runs.samples import Sample
from nanolm.terminal import in_notebook, say, visible


class NoLog:
    """The log of ranks other than the main one: it does nothing."""

    failure: DiskError | None = None

    def __init__(self) -> None:
        self.logger: Logger = NoLogger()

    def start_bar(self, total: int, done: int, seconds_left: Callable[[], float | None] | None = None) -> None: ...

    def advance(self) -> None: ...

    def row(self, row: MetricsRow) -> None: ...

    def sample(self, step: int, text: str) -> None: ...

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def require_written(self) -> None: ...

    def file_entries(self) -> dict[str, dict[str, Any]]:
        return {}

    def close(self) -> None: ...


def make_bar(seconds_left: Callable[[], float | None] | None, **settings: Any) -> tqdm[Any]:
    """Make a progress bar with its own estimate of the remaining time: a widget in a notebook that has them.

    Args:
        seconds_left: called whenever the bar is drawn; it returns None if the time is unknown.
        settings: of tqdm.
    """
    base: Any = tqdm
    if in_notebook():
        from tqdm import auto

        base = auto.tqdm

    class Bar(base):
        @property
        def format_dict(self) -> Any:
            """The values for `bar_format`."""
            seconds = seconds_left() if seconds_left is not None else None
            left = "?" if seconds is None else tqdm.format_interval(seconds)
            return {**super().format_dict, "left": left}

    if seconds_left is not None:
        settings["bar_format"] = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]"
    return Bar(**settings)


class _Rows:
    """A file that rows are appended to. A row that cannot be written is kept, and written before the next one.

    Nothing is buffered by Python, which would try to write it again when the file is closed.

    Args:
        length: bytes at the checkpoint to resume from; the rest is truncated.
        hashed: their SHA-256; None computes it.

    Raises:
        RunError: the file is shorter.
    """

    def __init__(self, path: Path, length: int, hashed: hashlib._Hash | None = None) -> None:
        self.path = path
        self._file = open_regular(path, "ab", is_buffered=False)
        # Truncating a shorter file would pad it with NUL bytes.
        if os.fstat(self._file.fileno()).st_size < length:
            raise RunError(f"{path.name} is shorter than at the checkpoint", where=str(path))
        self._hash = hashed or hash_prefix(path, length)
        self._length = length
        self._file.truncate(length)
        self._pending, self._is_torn = b"", False

    def append(self, content: bytes) -> None:
        """Append a row; raises OSError if it is kept."""
        self._pending += content
        self._write_pending()

    def entry(self) -> dict[str, Any]:
        """Flush the rows to disk and return their size in bytes and their SHA-256; raises OSError."""
        try:
            self._write_pending()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        return self.written()

    def written(self) -> dict[str, Any]:
        """Return the size in bytes and the SHA-256 of the rows that are in the file."""
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}

    def _write_pending(self) -> None:
        if not self._pending:
            return
        try:
            if self._is_torn:
                self._file.truncate(self._length)
            left = memoryview(self._pending)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            # A part of a row may be in the file.
            self._is_torn = True
            with contextlib.suppress(OSError):
                self._file.truncate(self._length)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._is_torn = False
        self._hash.update(self._pending)
        self._length += len(self._pending)
        self._pending = b""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._write_pending()
        with contextlib.suppress(OSError):
            self._file.close()


class Log:
    """Write the output of a run.

    A failing disk raises no error here. If it concerns metrics.jsonl, `failure` has it, and the run has to end.
    train.log, samples.jsonl and the console are best effort.

    Args:
        file_sizes: bytes of metrics.jsonl and samples.jsonl at the checkpoint to resume from; the rest is truncated.
        show_bar: whether to show the progress bar; None shows it on a terminal and in a notebook.
        bar_file: the stream of the bar; None is stderr.
        quiet: whether messages go to train.log only.
        hashes: SHA-256 of these bytes by file name, where it is known.

    Raises:
        RunError: a file is shorter than at the checkpoint.
        OSError: metrics.jsonl or samples.jsonl cannot be opened.
    """

    def __init__(
        self,
        run: RunDirectory,
        file_sizes: dict[str, int],
        show_bar: bool | None = None,
        bar_file: IO[str] | None = None,
        quiet: bool = False,
        hashes: Mapping[str, hashlib._Hash] | None = None,
    ) -> None:
        self.logger: Logger = NoLogger()
        self._bar_file = bar_file or sys.stderr
        self._show_bar = self._bar_file.isatty() or in_notebook() if show_bar is None else show_bar
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None
        self._postfix: dict[str, str] = {}
        self._text_lock = threading.Lock()
        self._failed: set[Path] = set()
        self._run = run
        self.failure: DiskError | None = None
        self._metrics, self._samples = (
            _Rows(path, file_sizes.get(path.name, 0), (hashes or {}).get(path.name))
            for path in (run.metrics, run.samples)
        )
        self._text: IO[bytes] | None = None
        try:
            self._text = open_regular(run.log, "ab", is_buffered=False)
        except OSError as error:
            self._skip(run.log, error)

    def start_bar(self, total: int, done: int, seconds_left: Callable[[], float | None] | None = None) -> None:
        """Show the progress bar with `done` of `total` steps.

        Args:
            seconds_left: an estimate of the remaining time; None uses that of tqdm.
        """
        self._bar = make_bar(
            seconds_left,
            total=total,
            initial=done,
            unit="step",
            file=self._bar_file,
            disable=not self._show_bar,
            dynamic_ncols=True,
            mininterval=0.2,
            smoothing=0.1,
            leave=not self._quiet,
        )

    def advance(self) -> None:
        """Advance the bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def row(self, row: MetricsRow) -> None:
        """Write a row of metrics.jsonl, pass it to the logger and show it in the bar."""
        try:
            self._metrics.append(encode_row(row))
        except OSError as error:
            self.failure = self.failure or self._failed_run(error)
        self.logger.log(row)
        if self._show_bar and self._bar is not None:
            estimate = " estimate" if row.scored_tokens is not None else ""
            self._postfix[row.split] = f"{row.split}{estimate} {row.loss:.4f}"
            if row.tokens_per_second is not None:
                self._postfix["speed"] = f"{row.tokens_per_second:,.0f} tokens/s"
            self._bar.set_postfix_str(", ".join(self._postfix.values()), refresh=False)

    def sample(self, step: int, text: str) -> None:
        """Write a row of samples.jsonl."""
        try:
            self._samples.append(encode_row(Sample(step, text)))
        except OSError as error:
            self._skip(self._run.samples, error)

    def say(self, text: str) -> None:
        """Write a message to train.log and, unless quiet, to the console above the bar."""
        self.note(text)
        if not self._quiet:
            self._show(text)

    def _show(self, text: str) -> None:
        if self._bar is not None and self._show_bar:
            self._bar.write(visible(text, multiline=True), file=self._bar_file)
        else:
            say(text)

    def note(self, text: str) -> None:
        """Write a message with the time to train.log only. Thread-safe."""
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with self._text_lock:
            if self._text is None:
                return
            try:
                self._text.write(f"{now} {visible(text, multiline=True)}\n".encode())
            except OSError as error:
                self._skip(self._run.log, error)

    def _skip(self, path: Path, error: OSError) -> None:
        """Say, once for each file, that it cannot be written."""
        if path not in self._failed:
            self._failed.add(path)
            self._show(f"nanolm: {path} cannot be written, training continues: {error.strerror or error}")

    def _failed_run(self, error: OSError) -> DiskError:
        path = self._run.path
        return write_failure(error, "the run", str(path), f"resume the run: {shell.resume_command(path)}")

    def file_entries(self) -> dict[str, dict[str, Any]]:
        """Flush metrics.jsonl and samples.jsonl to disk and return the size in bytes and the SHA-256 of each.

        Raises:
            DiskError: metrics.jsonl cannot be written.
        """
        try:
            entries = {self._run.metrics.name: self._metrics.entry()}
        except OSError as error:
            raise self._failed_run(error) from error
        try:
            entries[self._run.samples.name] = self._samples.entry()
        except OSError as error:
            self._skip(self._run.samples, error)
            entries[self._run.samples.name] = self._samples.written()
        return entries

    def require_written(self) -> None:
        """Raise the DiskError of a row of metrics.jsonl that could not be written."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Close the bar and the files, but not the logger, which needs the final summary."""
        if self._bar is not None:
            self._bar.close()
        self._metrics.close()
        self._samples.close()
        if self._text is not None:
            with contextlib.suppress(OSError):
                self._text.close()
