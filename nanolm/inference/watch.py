"""The checkpoints of a run as its training writes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from nanolm.errors import CheckpointError, RunError
from nanolm.inference.engine import Engine
from nanolm.run_layout import checkpoints_by_step
from nanolm.runs.directory import RunDirectory

# Seconds between two looks at the folder.
INTERVAL = 1.0


def new_checkpoints(
    path: str, load: Callable[[], Engine], sleep: Callable[[float], object] = time.sleep, interval: float = INTERVAL
) -> Iterator[Engine]:
    """Yield the newest checkpoint of a run, and each newer one as soon as it is complete, until training has ended.

    A checkpoint that is replaced by a newer one between two looks is skipped.

    Args:
        load: loads the newest checkpoint.
        sleep: waits for a number of seconds.

    Raises:
        RunError: the directory is not a run, or training has ended without a checkpoint.
        CheckpointError: the newest checkpoint is damaged, and nothing will replace it.
    """
    run = RunDirectory(path).require()
    step = -1
    while True:
        # Asked first: a checkpoint that is written afterwards is found by the next look.
        is_training = run.is_claimed()
        if max(checkpoints_by_step(run.checkpoints), default=-1) > step:
            try:
                engine = load()
            except (CheckpointError, RunError, OSError):
                # Training may have removed the checkpoint while it was read.
                if not is_training:
                    raise
            else:
                if engine.step > step:
                    step = engine.step
                    yield engine
        elif not is_training:
            if step < 0:
                load()  # raises the reason why there is none
            return
        sleep(interval)
