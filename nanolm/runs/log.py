"""What a run says: metrics.jsonl is the truth; the bar, the console and the logger are best effort."""

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
from nanolm.runs.metrics import MetricsRow, encode_row
from nanolm.runs.samples import Sample, encode_sample
from nanolm.terminal import say, visible


class NoLog:
    """What a process has in place of the log when another one writes it."""

    def __init__(self) -> None:
        self.logger: Logger = NoLogger()

    def start_bar(self, total: int, done: int, seconds_left: Callable[[], float | None] | None = None) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""

    def row(self, row: MetricsRow) -> None:
        """Nothing."""

    def sample(self, step: int, text: str) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def lengths(self) -> dict[str, int]:
        """No files."""
        return {}

    def checksums(self) -> dict[str, str]:
        """No files."""
        return {}

    def close(self) -> None:
        """Nothing."""


class Bar(tqdm):
    """A progress bar whose time left is asked for.

    Args:
        seconds_left: called whenever the bar is drawn; None of what is not known yet.
    """

    def __init__(self, *, seconds_left: Callable[[], float | None] | None = None, **settings: Any) -> None:
        self._seconds_left = seconds_left
        if seconds_left is not None:
            settings["bar_format"] = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{left}, {rate_fmt}{postfix}]"
        super().__init__(**settings)

    @property
    def format_dict(self) -> Any:
        """What the format of the bar is filled with."""
        seconds = self._seconds_left() if self._seconds_left is not None else None
        left = "?" if seconds is None else tqdm.format_interval(seconds)
        return {**super().format_dict, "left": left}


class Log:
    """The growing files of a run, its bar and its console.

    Args:
        run: where the files are.
        lengths: bytes that each file had at the checkpoint that the run goes on from; what came after is cut off.
        show_bar: True or False; None shows it on a terminal alone.
        bar_file: where the bar is drawn.
        quiet: whether lines for people go to train.log alone.

    Raises:
        RunError: a growing file is shorter than its length at the checkpoint.
    """

    def __init__(
        self,
        run: RunDirectory,
        lengths: dict[str, int],
        show_bar: bool | None = None,
        bar_file: IO[str] | None = None,
        quiet: bool = False,
    ) -> None:
        self.logger: Logger = NoLogger()
        self._bar_file = bar_file or sys.stderr
        self._show_bar = self._bar_file.isatty() if show_bar is None else show_bar
        self._quiet = quiet
        self._bar: Bar | None = None
        self._shown: dict[str, str] = {}
        self._text = open_regular(run.log, "a")
        self._turn = threading.Lock()
        self._growing: dict[str, IO[bytes]] = {}
        self._sums: dict[str, Any] = {}
        for path in (run.metrics, run.samples):
            file, length = open_regular(path, "ab"), lengths.get(path.name, 0)
            self._growing[path.name] = file
            # To truncate a shorter file would fill it with NUL bytes.
            try:
                self._sums[path.name] = hash_prefix(path, length)
            except EOFError as error:
                raise RunError(f"{path.name} is shorter than at the checkpoint", where=str(path)) from error
            file.truncate(length)
        self._metrics, self._samples = run.metrics.name, run.samples.name

    def start_bar(self, total: int, done: int, seconds_left: Callable[[], float | None] | None = None) -> None:
        """Shows the bar, with `done` steps behind it.

        Args:
            seconds_left: an estimate that knows more than the bar; None leaves it to the bar.
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
        """One step done."""
        if self._bar is not None:
            self._bar.update()

    def row(self, row: MetricsRow) -> None:
        """Writes a row of metrics, gives it to the logger and shows it in the bar."""
        self._append(self._metrics, encode_row(row))
        self.logger.log(row)
        if self._show_bar and self._bar is not None:
            self._shown[row.split] = f"{row.split} {row.loss:.4f}"
            if row.tokens_per_second is not None:
                self._shown["speed"] = f"{row.tokens_per_second:,.0f} tokens/s"
            self._bar.set_postfix_str(", ".join(self._shown.values()), refresh=False)

    def sample(self, step: int, text: str) -> None:
        """Appends a sample of the model's writing."""
        self._append(self._samples, encode_sample(Sample(step, text)))

    def say(self, text: str) -> None:
        """A line for people: in train.log with the time, and on the console above the bar."""
        self.note(text)
        if self._quiet:
            return
        if self._bar is not None and self._show_bar:
            self._bar.write(visible(text, multiline=True), file=self._bar_file)
        else:
            say(text)

    def note(self, text: str) -> None:
        """A line in train.log alone, with the time; any thread may write one."""
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with self._turn:
            self._text.write(f"{now} {visible(text, multiline=True)}\n")
            self._text.flush()

    def lengths(self) -> dict[str, int]:
        """Bytes of each growing file, all of them on disk."""
        for file in self._growing.values():
            file.flush()
            os.fsync(file.fileno())
        # Not tell(), which a truncation leaves where it was.
        return {name: os.fstat(file.fileno()).st_size for name, file in self._growing.items()}

    def checksums(self) -> dict[str, str]:
        """The SHA-256 of each growing file, over the bytes that `lengths` counts."""
        return {name: found.hexdigest() for name, found in self._sums.items()}

    def _append(self, name: str, content: bytes) -> None:
        self._growing[name].write(content)
        self._growing[name].flush()
        self._sums[name].update(content)

    def close(self) -> None:
        """Ends the bar and closes the files. The logger is closed by whoever has the summary."""
        if self._bar is not None:
            self._bar.close()
        for file in self._growing.values():
            file.close()
        self._text.close()
