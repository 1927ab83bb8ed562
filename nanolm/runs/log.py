"""The output of a run: metrics.jsonl, samples.jsonl, train.log, the progress bar and the experiment logger."""

from __future__ import annotations

import datetime
import os
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from tqdm import tqdm

from nanolm.errors import RunError
from nanolm.files import hash_prefix, open_regular
from nanolm.runs.directory import RunDirectory
from nanolm.runs.loggers import Logger, NoLogger
from nanolm.runs.metrics import MetricsRow
from nanolm.runs.records import encode_row
from nanolm.runs.samples import Sample
from nanolm.terminal import say, visible


class NoLog:
    """The log of ranks other than the main one: it does nothing."""

    def __init__(self) -> None:
        self.logger: Logger = NoLogger()

    def start_bar(self, total: int, done: int, seconds_left: Callable[[], float | None] | None = None) -> None: ...

    def advance(self) -> None: ...

    def row(self, row: MetricsRow) -> None: ...

    def sample(self, step: int, text: str) -> None: ...

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def file_entries(self) -> dict[str, dict[str, Any]]:
        return {}

    def close(self) -> None: ...


class Bar(tqdm):
    """A progress bar with its own estimate of the remaining time.

    Args:
        seconds_left: called whenever the bar is drawn; it returns None if the time is unknown.
    """

    def __init__(self, *, seconds_left: Callable[[], float | None] | None = None, **settings: Any) -> None:
        self._seconds_left = seconds_left
        if seconds_left is not None:
            settings["bar_format"] = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]"
        super().__init__(**settings)

    @property
    def format_dict(self) -> Any:
        """The values for `bar_format`."""
        seconds = self._seconds_left() if self._seconds_left is not None else None
        left = "?" if seconds is None else tqdm.format_interval(seconds)
        return {**super().format_dict, "left": left}


class Log:
    """Write the output of a run.

    Args:
        file_sizes: bytes of metrics.jsonl and samples.jsonl at the checkpoint to resume from; the rest is truncated.
        show_bar: whether to show the progress bar; None shows it on a terminal only.
        bar_file: the stream of the bar; None is stderr.
        quiet: whether messages go to train.log only.

    Raises:
        RunError: a file is shorter than at the checkpoint.
    """

    def __init__(
        self,
        run: RunDirectory,
        file_sizes: dict[str, int],
        show_bar: bool | None = None,
        bar_file: IO[str] | None = None,
        quiet: bool = False,
    ) -> None:
        self.logger: Logger = NoLogger()
        self._bar_file = bar_file or sys.stderr
        self._show_bar = self._bar_file.isatty() if show_bar is None else show_bar
        self._quiet = quiet
        self._bar: Bar | None = None
        self._postfix: dict[str, str] = {}
        self._text = open_regular(run.log, "a")
        self._text_lock = threading.Lock()
        self._files: dict[str, IO[bytes]] = {}
        self._hashes: dict[str, Any] = {}
        for path in (run.metrics, run.samples):
            file, length = open_regular(path, "ab"), file_sizes.get(path.name, 0)
            self._files[path.name] = file
            # Truncating a shorter file would pad it with NUL bytes.
            try:
                self._hashes[path.name] = hash_prefix(path, length)
            except EOFError as error:
                raise RunError(f"{path.name} is shorter than at the checkpoint", where=str(path)) from error
            file.truncate(length)
        self._metrics, self._samples = run.metrics.name, run.samples.name

    def start_bar(self, total: int, done: int, seconds_left: Callable[[], float | None] | None = None) -> None:
        """Show the progress bar with `done` of `total` steps.

        Args:
            seconds_left: an estimate of the remaining time; None uses that of tqdm.
        """
        self._bar = Bar(
            seconds_left=seconds_left,
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
        self._append(self._metrics, encode_row(row))
        self.logger.log(row)
        if self._show_bar and self._bar is not None:
            self._postfix[row.split] = f"{row.split} {row.loss:.4f}"
            if row.tokens_per_second is not None:
                self._postfix["speed"] = f"{row.tokens_per_second:,.0f} tokens/s"
            self._bar.set_postfix_str(", ".join(self._postfix.values()), refresh=False)

    def sample(self, step: int, text: str) -> None:
        """Write a row of samples.jsonl."""
        self._append(self._samples, encode_row(Sample(step, text)))

    def say(self, text: str) -> None:
        """Write a message to train.log and, unless quiet, to the console above the bar."""
        self.note(text)
        if self._quiet:
            return
        if self._bar is not None and self._show_bar:
            self._bar.write(visible(text, multiline=True), file=self._bar_file)
        else:
            say(text)

    def note(self, text: str) -> None:
        """Write a message with the time to train.log only. Thread-safe."""
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with self._text_lock:
            self._text.write(f"{now} {visible(text, multiline=True)}\n")
            self._text.flush()

    def file_entries(self) -> dict[str, dict[str, Any]]:
        """Flush metrics.jsonl and samples.jsonl to disk and return the size in bytes and the SHA-256 of each."""
        entries = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            # tell() is wrong after truncation.
            size = os.fstat(file.fileno()).st_size
            entries[name] = {"bytes": size, "sha256": self._hashes[name].hexdigest()}
        return entries

    def _append(self, name: str, content: bytes) -> None:
        self._files[name].write(content)
        self._files[name].flush()
        self._hashes[name].update(content)

    def close(self) -> None:
        """Close the bar and the files, but not the logger, which needs the final summary."""
        if self._bar is not None:
            self._bar.close()
        for file in self._files.values():
            file.close()
        self._text.close()
