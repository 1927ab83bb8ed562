"""A run that is trained: its setup, its log, its checkpoints, and the error if it diverges."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nanolm.config.identity import recorded
from nanolm.errors import CheckpointError, DivergedError
from nanolm.runs.log import Log, NoLog
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.setup import Setup

DIVERGED_HINT = "use a lower optimizer.lr, a longer scheduler.warmup_steps, or trainer.clip_norm=1.0"


def checkpoint_facts(setup: Setup) -> dict[str, Any]:
    """Return the entries of a checkpoint's manifest, except for `logs`."""
    state = setup.state
    return {
        "val_loss": state.val_loss if math.isfinite(state.val_loss) else None,
        **setup.about,
        "settings": recorded(setup.config),
        "best_step": state.best_step,
    }


@dataclasses.dataclass
class Session:
    """A run that is trained.

    Attributes:
        profile: whether to trace a few steps.
    """

    setup: Setup
    log: Log | NoLog
    saver: Saver
    profile: bool

    def is_save_due(self) -> bool:
        """Return whether a checkpoint is due at this step, by the clock of rank 0 if the time decides."""
        if self.setup.config.trainer.save_every_minutes is None:
            return self.saver.is_due(self.setup.state.step)
        return self.setup.ranks.run_on_main(lambda: self.saver.is_due(self.setup.state.step))

    def save(self) -> None:
        """Save a checkpoint, and prune old ones once it is verified."""
        setup, state = self.setup, self.setup.state
        facts = checkpoint_facts(setup)
        weights, other, averages = state.full_state()

        def save() -> None:
            self.saver.save(state.step, weights, other, {**facts, "logs": self.log.file_entries()}, averages)

        setup.ranks.run_on_main(save)

    def diverged_error(self, loss: float, grad_norm: float, lr: float) -> DivergedError:
        """Wait for the last checkpoint, and build an error that names the step, its numbers and that checkpoint."""
        run, state = self.setup.run, self.setup.state
        self.saver.wait_and_report()
        try:
            last, _ = checkpoint.newest(run.checkpoints)
        except CheckpointError:
            last = None
        scaler = state.number_format.scaler
        scale = "" if scaler is None else f", loss scale {scaler.get_scale():.3g}"
        return DivergedError(
            f"the run diverged at step {state.step + 1}: loss {loss}, gradient norm {grad_norm}, lr {lr:.3g}{scale}",
            where=f"{run.path}; last good checkpoint: {last.path.name if last else 'none yet'}",
            hint=f"{DIVERGED_HINT}; the weights of the last good step were kept",
        )
