"""Turn trainer.max_minutes into a number of steps, by timing some steps, an evaluation and a save.

The timed steps are undone, so that the run is bit for bit that of trainer.max_steps with this number.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Iterator

import torch

from nanolm.config.batch_schedule import stages
from nanolm.config.budget import MAX_MINUTES, Budget, budget_of
from nanolm.config.checks.scheduler import check_phases
from nanolm.config.lr_scaling import resolve_optimizer
from nanolm.config.run import Config
from nanolm.config.trainer import TrainerConfig
from nanolm.errors import SettingsError, raise_all
from nanolm.model import count
from nanolm.model.budget import MOST_STEPS, with_steps
from nanolm.training import rng
from nanolm.training.optimizers import build as optimizers
from nanolm.training.optimizers.state import checked_state
from nanolm.training.pace import times_due
from nanolm.training.setup import Setup
from nanolm.training.timing import Clock, time_evaluation, time_save, time_steps
from nanolm.wording import format_duration

# The share of the budget in which steps are timed, and its limits in seconds. It is lost for training.
TIMED_SHARE = 0.02
LEAST_SECONDS, MOST_SECONDS = 1.0, 15.0
MOST_TIMED = 10_000


@dataclasses.dataclass(frozen=True)
class Costs:
    """Measured seconds.

    Attributes:
        steps: of a step, by the shape of its batch.
        evaluation: of an evaluation.
        save: for which the training loop waits for a checkpoint.
        end: from the last step, evaluation and save to the end of the run.
    """

    steps: dict[tuple[int, int], float]
    evaluation: float
    save: float
    end: float


def fix_steps(setup: Setup, started: float, clock: Clock = time.perf_counter) -> Setup:
    """Return the setup with the number of steps that trainer.max_minutes has; nothing is measured for another budget.

    All ranks must call it.

    Args:
        started: when the command started, by the clock.
        clock: monotonic seconds.

    Raises:
        SettingsError: the minutes are over before the first step is done.
        DivergedError: a loss or gradient is not finite.
    """
    if setup.has_steps:
        return setup
    config, state = setup.config, setup.state
    minutes = budget_of(config.trainer)
    seconds = 60 * minutes.value - state.seconds

    def elapsed() -> float:
        return clock() - started

    def steps_left_over() -> tuple[int, float]:
        so_far = elapsed()
        max_steps = steps_within(config, state.step, seconds - so_far, costs)
        if max_steps == state.step:
            first = duration(with_steps(config, state.step + 1), state.step, costs)
            raise _too_short(minutes, state.seconds + so_far, state.seconds + so_far + first)
        return max_steps, so_far

    setup.ranks.run_on_main(lambda: _require_time(minutes, state.seconds + elapsed()))
    with _undone(setup):
        costs = _measure(setup, minutes, clock)
    max_steps, start_up = setup.ranks.run_on_main(steps_left_over)
    config = with_steps(config, max_steps)
    raise_all(list(check_phases(config)))
    if setup.parent is not None:
        setup.parent.require_steps_left(config)
    if state.optimizer is not None:
        # Some optimizers depend on the number of steps.
        saved = copy.deepcopy(state.optimizer.state_dict())
        state.optimizer = optimizers.build(resolve_optimizer(config), state.model)
        state.optimizer.load_state_dict(checked_state(state.optimizer, saved))
    flops_per_token = count.mean_flops_per_token(config, setup.tokenizer.vocab_size)
    notes = [*setup.resume_info.notes, _describe(config, start_up, costs)]
    return dataclasses.replace(
        setup,
        config=config,
        has_steps=True,
        flops_per_token=flops_per_token,
        resume_info=dataclasses.replace(setup.resume_info, notes=notes),
    )


def steps_within(config: Config, first: int, seconds: float, costs: Costs) -> int:
    """Return the largest number of steps of a run that ends within some seconds; `first` if no step does.

    Args:
        first: steps that are done.
    """
    low, high = first, first + 1
    while high < MOST_STEPS and duration(with_steps(config, high), first, costs) <= seconds:
        low, high = high, first + 2 * (high - first)
    while high - low > 1:
        middle = (low + high) // 2
        fits = duration(with_steps(config, middle), first, costs) <= seconds
        low, high = (middle, high) if fits else (low, middle)
    return low


def duration(config: Config, first: int, costs: Costs) -> float:
    """Return the seconds of a run from a step on, with its evaluations and saves."""
    trainer = config.trainer
    n_evaluations = times_due(first, trainer.steps, trainer.eval_every)
    return (
        sum(stage.steps_from(first) * costs.steps[stage.shape] for stage in stages(config))
        + n_evaluations * costs.evaluation
        + _n_saves(trainer, first) * costs.save
        + costs.end
    )


def _n_saves(trainer: TrainerConfig, first: int) -> int:
    """Count the saves after a step: every save_every steps, and after every evaluation, which may be the best."""
    both = math.lcm(trainer.save_every, trainer.eval_every)
    by_step, by_loss, at_once = (
        times_due(first, trainer.steps, every) for every in (trainer.save_every, trainer.eval_every, both)
    )
    return by_step + by_loss - at_once


def _measure(setup: Setup, minutes: Budget, clock: Clock) -> Costs:
    found = stages(setup.config)
    share = min(max(60 * minutes.value * TIMED_SHARE, LEAST_SECONDS), MOST_SECONDS) / len(found)
    shapes = {
        stage.shape: time_steps(setup, stage, max(setup.state.step, stage.start), MOST_TIMED, share, clock).seconds
        for stage in found
    }
    (evaluation, exact), save = time_evaluation(setup, clock), time_save(setup, clock)
    return Costs(shapes, evaluation, save.in_loop, exact + save.written)


@contextlib.contextmanager
def _undone(setup: Setup) -> Iterator[None]:
    """Restore the weights, the optimizer and the random generators at the end, as if nothing had been trained."""
    state = setup.state
    optimizer, scaler = state.optimizer, state.number_format.scaler
    assert optimizer is not None, "a fitted model has no steps"
    tensors = [*state.model.parameters(), *state.model.buffers()]
    copies = [tensor.detach().clone() for tensor in tensors]
    saved = copy.deepcopy(optimizer.state_dict())
    saved_scaler = None if scaler is None else copy.deepcopy(scaler.state_dict())
    generators = rng.get_state(state.device)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, kept in zip(tensors, copies, strict=True):
                tensor.copy_(kept)
        for parameter in state.model.parameters():
            parameter.grad = None
        optimizer.load_state_dict(saved)
        if scaler is not None and saved_scaler is not None:
            scaler.load_state_dict(saved_scaler)
        rng.set_state(generators, state.device)


def _require_time(minutes: Budget, elapsed: float) -> None:
    if elapsed >= 60 * minutes.value:
        raise _too_short(minutes, elapsed)


def _too_short(minutes: Budget, elapsed: float, needed: float | None = None) -> SettingsError:
    """Return the error of a budget that is over before the first step has ended.

    Args:
        elapsed: seconds of the start-up, and of earlier sessions.
        needed: seconds until a run of one step would have ended; None if they have not been measured.
    """
    problem = f"{minutes} ({format_duration(60 * minutes.value)}) is shorter than the start-up, "
    if needed is None:
        problem += f"with earlier sessions {format_duration(elapsed)}"
    else:
        problem += f"{format_duration(elapsed)}, and one step with its evaluation and save: {format_duration(needed)}"
    least = math.ceil(100 * (needed or 2 * elapsed) / 60) / 100
    return SettingsError(problem, where=f"trainer.{MAX_MINUTES}", hint=f"trainer.{MAX_MINUTES}={least:g} or more")


def _describe(config: Config, start_up: float, costs: Costs) -> str:
    per_step = ", ".join(
        f"{1000 * seconds:.3g} ms" + (f" of {size:,} x {length:,} tokens" if len(costs.steps) > 1 else "")
        for (size, length), seconds in costs.steps.items()
    )
    return (
        f"measured: {format_duration(start_up)} to start, {per_step} per step, "
        f"{format_duration(costs.evaluation)} per evaluation; trainer.max_steps={config.trainer.steps} repeats this run"
    )
