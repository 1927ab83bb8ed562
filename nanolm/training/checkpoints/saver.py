"""The schedule of checkpoints and the background thread that writes them."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch

from nanolm.config.trainer import TrainerConfig
from nanolm.errors import DiskError, NanolmError
from nanolm.training.checkpoints import files as checkpoint


class Saver:
    """Saves the checkpoints of a run, one at a time, and prunes old ones.

    Used as a context manager, it exits when the last checkpoint is on disk.

    Args:
        folder: the checkpoints of the run.
        settings: how often to save, how many to keep, and whether to save in the background.
        announce: called with a message for each checkpoint on disk, by the thread that wrote it.
        on_first: called once, by the same thread, when the first checkpoint is on disk.
        clock: monotonic seconds.

    Attributes:
        has_saved: whether a checkpoint was written.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainerConfig,
        announce: Callable[[str], None],
        on_first: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._settings, self._announce, self._on_first = folder, settings, announce, on_first
        self._clock = clock
        self.has_saved = False
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None
        self._saved_at = clock()

    def is_due(self, step: int) -> bool:
        """Return whether trainer.save_every, keep_every or save_every_minutes asks for a checkpoint at this step."""
        settings = self._settings
        minutes = (self._clock() - self._saved_at) / 60
        return (
            step % settings.save_every == 0
            or (settings.keep_every is not None and step % settings.keep_every == 0)
            or (settings.save_every_minutes is not None and minutes >= settings.save_every_minutes)
        )

    def save(
        self,
        step: int,
        weights: Mapping[str, torch.Tensor],
        state: Any,
        facts: dict[str, Any],
        averages: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Copy the state to host memory and write it in the background, or before returning.

        Args:
            step, weights, state, averages: as `take_snapshot` takes them.
            facts: further entries of the manifest, with the step of the best checkpoint, which is kept, as "best_step".

        Raises:
            CheckpointError: this checkpoint or the previous one does not verify.
            DiskError: the disk is full or failed, now or at the previous save; older checkpoints are unchanged. If it
                was at the previous save, this checkpoint is still tried: there may be room again.
        """
        try:
            self.wait()
        except DiskError:
            with contextlib.suppress(NanolmError):
                self._write(checkpoint.take_snapshot(step, weights, state, facts, averages))
            raise
        snapshot = checkpoint.take_snapshot(step, weights, state, facts, averages)
        self._saved_at = self._clock()
        self._pending = self._thread.submit(self._write, snapshot)
        if not self._settings.save_in_background:
            self.wait()

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError, DiskError: see `save`.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def wait_and_report(self) -> None:
        """Wait, and announce an error instead of raising it: another error is ending the run."""
        try:
            self.wait()
        except Exception as error:
            self._announce(str(error))

    def _write(self, snapshot: checkpoint.Snapshot) -> None:
        saved = checkpoint.write(self._folder, snapshot)
        if not self.has_saved:
            self.has_saved = True
            self._on_first()
        self._announce(f"saved {saved.path.name}")
        try:
            checkpoint.prune(self._folder, saved.best_step, self._settings.keep_last, self._settings.keep_every)
        except OSError as error:
            # The next save tries again.
            self._announce(f"an old checkpoint cannot be removed: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()
        else:
            self.wait_and_report()
