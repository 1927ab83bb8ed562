"""A run that is trained: its setup, its log, its checkpoints, and the error if it diverges."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nanolm.config.budget import as_asked
from nanolm.config.identity import recorded
from nanolm.errors import CheckpointError, DivergedError
from nanolm.runs.log import Log, NoLog
from nanolm.training import results
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.results import StepResult
from nanolm.training.setup import Setup

DIVERGED_HINT = "use a lower optimizer.lr, a longer scheduler.warmup_steps, or trainer.clip_norm=1.0"


def checkpoint_facts(setup: Setup) -> dict[str, Any]:
    """Return the entries of a checkpoint's manifest, except for `logs`."""
    state = setup.state
    return {
        "val_loss": state.val_loss if math.isfinite(state.val_loss) else None,
        **({"val_sample": state.val_sample} if state.val_sample else {}),
        **setup.about,
        "settings": recorded(as_asked(setup.config)),
        "max_steps": setup.config.trainer.steps,
        "best_step": state.best_step,
    }


@dataclasses.dataclass
class Session:
    """A run that is trained.

    Attributes:
        profile: whether to trace a few steps.
        unverified: results of the latest steps, whose numbers the host has not checked, with their lr and number of
            scored targets.
    """

    setup: Setup
    log: Log | NoLog
    saver: Saver
    profile: bool
    unverified: list[tuple[StepResult, float, int]] = dataclasses.field(default_factory=list)

    def record(self, result: StepResult, lr: float, n_scored: int) -> None:
        """Count a step, without waiting for its numbers."""
        self.setup.state.step += 1
        self.setup.state.tokens += n_scored
        self.unverified.append((result, lr, n_scored))

    def verify(self) -> None:
        """Wait for the device, and check the numbers of the steps since the previous call.

        Raises:
            DivergedError: a loss or gradient was not finite. The weights, which no later update has changed, and the
                counters are those of the step before, and nothing has been saved since.
        """
        state, unverified = self.setup.state, self.unverified
        self.unverified = []
        results.read([result for result, _, _ in unverified])
        for number, (result, lr, _) in enumerate(unverified):
            if result.has_diverged:
                state.step -= len(unverified) - number
                state.tokens -= sum(n_scored for _, _, n_scored in unverified[number:])
                raise self.diverged_error(result.loss, result.grad_norm, lr, result.loss_scale)
            state.loss_sum += result.loss
            state.loss_steps += 1
            state.skipped_updates += result.has_overflowed

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

    def diverged_error(
        self, loss: float, grad_norm: float, lr: float, loss_scale: float | None = None
    ) -> DivergedError:
        """Wait for the last checkpoint, and build an error that names the step, its numbers and that checkpoint."""
        run, state = self.setup.run, self.setup.state
        self.saver.wait_and_report()
        try:
            last, _ = checkpoint.newest(run.checkpoints)
        except CheckpointError:
            last = None
        scale = "" if loss_scale is None else f", loss scale {loss_scale:.3g}"
        return DivergedError(
            f"the run diverged at step {state.step + 1}: loss {loss}, gradient norm {grad_norm}, lr {lr:.3g}{scale}",
            where=f"{run.path}; last good checkpoint: {last.path.name if last else 'none yet'}",
            hint=f"{DIVERGED_HINT}; the weights of the last good step were kept",
        )
