"""Early stopping: end a run whose validation loss no longer improves (trainer.early_stop)."""

from __future__ import annotations

from nanolm.config.trainer import TrainerConfig
from nanolm.training.checkpoints.state import TrainState


def after_evaluation(state: TrainState, trainer: TrainerConfig) -> None:
    """Update the number of evaluations since the last improvement, by the latest validation loss."""
    if state.val_loss < state.loss_to_beat - trainer.early_stop_delta:
        state.loss_to_beat, state.stalled = state.val_loss, 0
    else:
        state.stalled += 1


def has_stalled(state: TrainState, trainer: TrainerConfig) -> bool:
    """Return whether the run is to stop early."""
    return trainer.early_stop is not None and state.stalled >= trainer.early_stop


def describe(state: TrainState, trainer: TrainerConfig) -> str:
    """Return the message about a run that stops early."""
    n = state.stalled
    by = f" by more than {trainer.early_stop_delta:g}" if trainer.early_stop_delta else ""
    return (
        f"stops early at step {state.step:,}: {n} evaluation{'s' * (n != 1)} in a row did not improve on "
        f"{state.loss_to_beat:.4f}{by}; resuming the run continues it, and counts evaluations anew"
    )
