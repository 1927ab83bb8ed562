"""Measure how long the steps, the evaluations and the saves of a run take, before it starts."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nanolm.config.batch_schedule import Stage
from nanolm.errors import DivergedError
from nanolm.training import results, schedules
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.manifest import LOGS
from nanolm.training.ema import Averages
from nanolm.training.estimate import estimated_loss
from nanolm.training.evaluation import val_loss, write_sample
from nanolm.training.optimizers.build import evaluation_weights
from nanolm.training.results import StepResult
from nanolm.training.session import DIVERGED_HINT, checkpoint_facts
from nanolm.training.setup import Setup
from nanolm.training.step import micro_batches, set_lr, update

Clock = Callable[[], float]

# Steps before the timed ones: the first is slower, and compiles.
WARMUP_STEPS = 2
# Seconds up to which an evaluation is timed twice.
SHORT_EVALUATION = 3.0
# Steps between two looks at the results, which wait for the device.
STEPS_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class StepTime:
    """The mean of some steps.

    Attributes:
        seconds: of a step.
        tokens: scored in a step.
    """

    seconds: float
    tokens: float


def time_steps(
    setup: Setup, stage: Stage, first: int, max_steps: int, max_seconds: float, clock: Clock = time.perf_counter
) -> StepTime:
    """Train for some steps of a stage from `first` on, and return their mean; its last step is repeated if it is short.

    Args:
        max_steps, max_seconds: the measurement ends after that many steps, or that long.
        clock: monotonic seconds.

    Raises:
        DivergedError: a loss or gradient is not finite.
    """
    settings, state = setup.config.trainer, setup.state
    assert state.optimizer is not None, "a fitted model has no steps"
    n_timed = tokens = 0
    began = clock()
    unread: list[StepResult] = []
    for number in range(WARMUP_STEPS + max_steps):
        step = min(first + number, stage.end - 1)
        set_lr(state.optimizer, schedules.factor(step, settings.steps, setup.config.scheduler, state.plateau))
        batch, n_scored = micro_batches(setup.config, setup.streams["train"], step, state.device, setup.ranks)
        clipping = (settings.clip_norm, settings.clip_value)
        unread.append(
            update(
                setup.forward,
                state.optimizer,
                batch,
                state.number_format,
                *clipping,
                ranks=setup.ranks,
                n_scored=n_scored,
                loss_fn=setup.loss_fn,
            )
        )
        is_timed = number >= WARMUP_STEPS
        n_timed, tokens = n_timed + is_timed, tokens + is_timed * n_scored
        # The same on all ranks, which have to make the same steps.
        is_over = is_timed and (n_timed == max_steps or setup.ranks.max(clock() - began) > max_seconds)
        if is_timed and n_timed % STEPS_TOGETHER and not is_over:
            continue
        results.read(unread)
        for result in unread:
            if result.has_diverged:
                raise _diverged(f"loss {result.loss}, gradient norm {result.grad_norm}")
        unread = []
        if not is_timed:
            began = clock()
        elif is_over:
            break
    return StepTime((clock() - began) / n_timed, tokens / n_timed)


def time_evaluation(setup: Setup, clock: Clock = time.perf_counter) -> tuple[float, float]:
    """Time an evaluation: the loss, that of the averaged weights, estimates and a sample.

    Returns:
        The seconds of an evaluation, and those at the end of a run in addition: with trainer.val_tokens, the last one
        scores the whole split, and a test split is scored once.

    Raises:
        DivergedError: the loss is not finite.
    """
    assert setup.state.optimizer is not None, "a fitted model has no steps"
    n_all = setup.streams["val"].scored_tokens
    n_models = 1 if setup.state.averages is None else 2
    with evaluation_weights(setup.state.optimizer):
        of_loss, others, n_tokens = _time_once(setup, clock)
        if setup.ranks.max(of_loss + others) < SHORT_EVALUATION:
            # The first one is slower.
            of_loss, others, n_tokens = _time_once(setup, clock)
    n_more = n_models * n_all * bool(n_tokens) + (setup.streams["test"].scored_tokens if "test" in setup.streams else 0)
    return n_models * of_loss + others, of_loss / (n_tokens or n_all) * n_more


def _time_once(setup: Setup, clock: Clock) -> tuple[float, float, int]:
    """Time the parts of an evaluation.

    Returns:
        The seconds of the validation loss, those of the sample and of other estimates, and the number of tokens that
        the loss is an estimate over.
    """
    trainer, began = setup.config.trainer, clock()
    loss, n_tokens = val_loss(setup)
    if not math.isfinite(loss):
        raise _diverged(f"validation loss {loss}")
    scored = clock()
    if trainer.sample_tokens and (setup.ranks.is_main or setup.state.is_sharded):
        write_sample(setup)
    for split in ("train", "val") if trainer.estimate_batches else ():
        estimated_loss(setup, split, trainer.estimate_batches)
    return scored - began, clock() - scored, n_tokens


@dataclasses.dataclass(frozen=True)
class SaveTime:
    """A checkpoint.

    Attributes:
        in_loop: seconds that the training loop waits for it.
        written: seconds until it is on disk.
        n_bytes: its size.
    """

    in_loop: float
    written: float
    n_bytes: int


def time_save(setup: Setup, clock: Clock = time.perf_counter) -> SaveTime:
    """Write a checkpoint to the run directory and remove it. All ranks must call it."""
    weights, state, averages = setup.state.full_state()
    return setup.ranks.run_on_main(lambda: _time_save(setup, weights, state, averages, clock))


def _time_save(
    setup: Setup, weights: dict[str, torch.Tensor], state: Any, averages: Averages | None, clock: Clock
) -> SaveTime:
    setup.run.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dry-run-", dir=setup.run.path) as folder:
        began = clock()
        log = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}
        facts = {**checkpoint_facts(setup), "logs": dict.fromkeys(LOGS, log)}
        snapshot = checkpoint.take_snapshot(setup.state.step, weights, state, facts, averages)
        copied = clock() - began
        saved = checkpoint.write(Path(folder), snapshot)
        written = clock() - began
        n_bytes = sum(path.stat().st_size for path in saved.path.iterdir())
    return SaveTime(copied if setup.config.trainer.save_in_background else written, written, n_bytes)


def _diverged(how: str) -> DivergedError:
    return DivergedError(f"training diverged while its speed was measured: {how}", where="the run", hint=DIVERGED_HINT)
