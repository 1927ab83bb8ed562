"""When checkpoints are saved, which of them stay, and the thread that writes them while training goes on."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from nanolm.config.trainer import TrainerConfig
from nanolm.training.checkpoints import files as checkpoint


class Saver:
    """Saves the checkpoints of a run, one at a time. Entered, it does not leave before the last one is on disk.

    Args:
        folder: the run's checkpoints.
        settings: how often, how many stay, and whether in the background.
        announce: called with a line about each checkpoint that is on disk, by the thread that wrote it.
        on_first: called once, by the same thread, when the first checkpoint is on disk.

    Attributes:
        has_saved: whether a checkpoint was written.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainerConfig,
        announce: Callable[[str], None],
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder, self._settings, self._announce, self._on_first = folder, settings, announce, on_first
        self.has_saved = False
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: concurrent.futures.Future[None] | None = None
        self._saved_at = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint falls on this step by trainer.save_every, keep_every or save_every_minutes."""
        settings = self._settings
        minutes = (time.monotonic() - self._saved_at) / 60
        return (
            step % settings.save_every == 0
            or (settings.keep_every is not None and step % settings.keep_every == 0)
            or (settings.save_every_minutes is not None and minutes >= settings.save_every_minutes)
        )

    def save(
        self,
        step: int,
        model: nn.Module,
        tree: Any,
        about: dict[str, Any],
        best_step: int,
        averages: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Copies the state; the copy is written in the background, or before this returns.

        Args:
            step: updates done.
            model: its weights are saved.
            tree: the rest of the state.
            about: what else the manifest says.
            best_step: the step of the checkpoint that stays as the best.
            averages: of the weights, by name, if there are any.

        Raises:
            CheckpointError: what was written, now or by the save before, does not read back.
            DiskError: the disk is full or fails, now or in the save before. Older checkpoints stand.
        """
        self.wait()
        snapshot = checkpoint.take(step, model, tree, about, averages)
        self._saved_at = time.monotonic()
        self._in_flight = self._thread.submit(self._write, snapshot, best_step)
        if not self._settings.save_in_background:
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            CheckpointError, DiskError: as `save`.
        """
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def wait_and_report(self) -> None:
        """Waits, and announces an error instead of raising it: for a run that another error ends."""
        try:
            self.wait()
        except Exception as error:
            self._announce(str(error))

    def _write(self, snapshot: checkpoint.Snapshot, best_step: int) -> None:
        saved = checkpoint.write(self._folder, snapshot)
        if not self.has_saved:
            self.has_saved = True
            self._on_first()
        self._announce(f"saved {saved.path.name}")
        checkpoint.prune(self._folder, best_step, self._settings.keep_last, self._settings.keep_every)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()
        else:
            self.wait_and_report()
