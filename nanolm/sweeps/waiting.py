"""Messages about jobs that a sweep waits for, because a process that may never continue holds their locks.

A job is taken over only when its lock is free, so when its process has ended. A stopped process cannot be fenced off:
when it continues, it writes the step that it was about to write. A person has to end it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from nanolm.files import open_regular
from nanolm.locks import describe, holder_of, release_hint
from nanolm.terminal import visible
from nanolm.wording import format_estimate

# Seconds without a write after which a stopped process is reported, and any other one.
STOPPED = 10.0
SILENT = 600.0

LOG = "sweep.log"


class Waits:
    """Reports each process that a sweep waits for in vain, once.

    Args:
        directory: the directory of the sweep, whose sweep.log has every message.
        show: prints a message, if there is a terminal.
        clock: returns the time in seconds since 1970, as modification times of files.
    """

    def __init__(self, directory: Path, show: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._log = directory / LOG
        self._show = show
        self._clock = clock
        self._reported: set[tuple[str, str]] = set()

    def check(self, name: str, lock: Path, written: Iterable[Path]) -> None:
        """Report the process that holds a lock if it is stopped or has not written for long.

        Args:
            name: what the sweep waits for.
            written: files that the process writes.
        """
        last = max(map(_modification_time, written), default=0.0)
        silence = self._clock() - last
        if not last or silence < STOPPED:
            return
        holder = holder_of(lock)
        is_stopped = holder is not None and holder.is_stopped
        if (silence < SILENT and not is_stopped) or (name, str(holder)) in self._reported:
            return
        self._reported.add((name, str(holder)))
        state = "is stopped, and has written" if is_stopped else "has written"
        text = (
            f"waiting for {name}: {describe(holder)} {state} nothing for {format_estimate(silence)}\n"
            f"  hint:  {release_hint(lock, holder)}. A job is taken over only when its process has ended"
        )
        self._show(f"nanolm: {text}")
        with contextlib.suppress(OSError), open_regular(self._log, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {visible(text, multiline=True)}\n")


def _modification_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
