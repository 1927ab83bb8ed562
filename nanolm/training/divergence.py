"""The error of a run whose loss or gradient is not finite."""

from __future__ import annotations

from nanolm.errors import CheckpointError, DivergedError
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.session import Session

DIVERGED_HINT = "use a lower optimizer.lr, a longer scheduler.warmup_steps, or trainer.clip_norm=1.0"


def diverged_error(session: Session, loss: float, grad_norm: float, lr: float) -> DivergedError:
    """Wait for the last checkpoint, and build an error that names the step, its numbers and that checkpoint."""
    state = session.setup.state
    session.saver.wait_and_report()
    try:
        last, _ = checkpoint.newest(session.setup.run.checkpoints)
    except CheckpointError:
        last = None
    scale = "" if state.number_format.scaler is None else f", loss scale {state.number_format.scaler.get_scale():.3g}"
    return DivergedError(
        f"the run diverged at step {state.step + 1}: loss {loss}, gradient norm {grad_norm}, lr {lr:.3g}{scale}",
        where=f"{session.setup.run.path}; last good checkpoint: {last.path.name if last else 'none yet'}",
        hint=f"{DIVERGED_HINT}; the weights of the last good step were kept",
    )
