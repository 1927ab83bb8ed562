"""What a run would come to: some of its steps made, its evaluation and its save timed, and nothing left behind."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from nanolm.config.identity import recorded
from nanolm.config.run import Config
from nanolm.errors import DivergedError, SettingsError
from nanolm.model import memory_estimate
from nanolm.model.build import FittedModel, count_parameters
from nanolm.model.shapes import has_formula
from nanolm.runs.console import in_time, in_units
from nanolm.runs.directory import RunDirectory
from nanolm.training import meters, schedules
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.divergence import DIVERGED_HINT
from nanolm.training.ema import Averages
from nanolm.training.evaluation import split_loss, write_sample
from nanolm.training.memory import translates_memory_errors
from nanolm.training.optimizers.build import evaluation_weights
from nanolm.training.pace import times_due
from nanolm.training.setup import Setup, prepare
from nanolm.training.step import micro_batches, set_lr, update
from nanolm.training.torch_errors import translate_torch_errors

# Steps whose time is not counted (the first is slower, and compiles), and what the timed ones may take together.
WARMUP_STEPS, MOST_STEPS, MOST_SECONDS = 2, 50, 5.0

# The schedule is shown at so many steps.
SHOWN_STEPS = 9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run would come to.

    Attributes:
        parameters, tokens: of the model; that the steps to come train on, padding of rows left out of neither.
        epochs: tokens over those of the train split.
        flops: of all steps to come; None where there is no formula.
        memory: bytes by what holds them, by formula.
        peak_by_formula: bytes at the peak of a step, where not all of these are live at once; None without a formula.
        peak_memory: bytes that were in use at most while it was measured; None where the system does not say.
        checkpoint_bytes: on disk, each.
        step_seconds, evaluation_seconds, save_seconds: of one each, measured.
        steps, evaluations, saves: to come; a new best that falls between saves is one more.
        mfu: the share of what the device can do that training uses; None where either is not known.
        peak_flops: of the device, and whether it was measured just now.
        lrs: (step, lr) at some steps.
        notes: what a user should know of the text.
    """

    parameters: int
    tokens: int
    epochs: float
    flops: int | None
    memory: dict[str, int]
    peak_by_formula: int | None
    peak_memory: int | None
    checkpoint_bytes: int
    step_seconds: float
    evaluation_seconds: float
    save_seconds: float
    steps: int
    evaluations: int
    saves: int
    tokens_per_second: float
    mfu: float | None
    peak_flops: float | None
    is_peak_measured: bool
    lrs: list[tuple[int, float]]
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """From the first step to come to the end."""
        return (
            self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds + self.saves * self.save_seconds
        )


@translates_memory_errors
@translate_torch_errors()
def dry_run(
    config: Config, run: RunDirectory, *, ranks: Ranks = SINGLE_PROCESS, parent: Parent | None = None
) -> Estimate:
    """Prepares a run as `train` does, makes some steps, one evaluation and one save, and leaves nothing of it.

    Args:
        config: checked settings.
        run: empty, or the run to go on with, which stays as it is.
        ranks: the processes that would train together.
        parent: where the run would begin as a fork.

    Raises:
        NanolmError: the data, the device or the checkpoint is not as it must be, or the model is counted.
        DivergedError: the loss or its gradient is not finite in the steps that were tried.
        OutOfMemoryError: memory was refused.
    """
    keep_freed_memory()
    setup = prepare(config, run, ranks, parent)
    if isinstance(setup.state.model, FittedModel):
        raise SettingsError(
            f"model={config.model.name} is counted in one pass: there are no steps to try",
            where="trainer.dry_run",
            hint="leave trainer.dry_run out; counting takes seconds",
        )
    meters.reset_peak_memory(setup.state.device)
    settings, state = config.trainer, setup.state
    first, last = state.step, settings.max_steps
    step_seconds, tokens_a_step = _time_steps(setup)
    evaluation_seconds = _time_evaluation(setup)
    peak_memory = meters.peak_memory(state.device)
    weights, tree, averages = state.full_weights(), state.state_dict(), state.full_averages()
    save_seconds, checkpoint_bytes = ranks.run_on_main(lambda: _time_save(setup, weights, tree, averages))
    peak = setup.peak_flops or meters.measure_peak_flops(state.device, state.number_format.dtype)
    speed = tokens_a_step / step_seconds
    n_parameters = count_parameters(state.model)
    vocab_size, number_format = setup.tokenizer.vocab_size, state.number_format.name
    memory = {part.name: part.amount for part in memory_estimate.state_memory(config, n_parameters, vocab_size)}
    peak_by_formula = None
    if has_formula(config):
        memory["activations"] = memory_estimate.activation_memory(config, vocab_size, number_format).amount
        peak_by_formula = memory_estimate.peak_memory(config, n_parameters, vocab_size, number_format)
    if state.averages is not None:
        memory["averages"] = memory["weights"]
    tokens = round((last - first) * tokens_a_step)
    shown = sorted({first + round((last - 1 - first) * n / (SHOWN_STEPS - 1)) for n in range(SHOWN_STEPS)})
    return Estimate(
        parameters=n_parameters,
        tokens=tokens,
        epochs=tokens / len(setup.streams["train"].tokens),
        flops=None if setup.flops_per_token is None else tokens * setup.flops_per_token,
        memory=memory,
        peak_by_formula=peak_by_formula,
        peak_memory=peak_memory,
        checkpoint_bytes=checkpoint_bytes,
        step_seconds=step_seconds,
        evaluation_seconds=evaluation_seconds,
        save_seconds=save_seconds,
        steps=last - first,
        evaluations=times_due(first, last, settings.eval_every),
        saves=times_due(first, last, settings.save_every),
        tokens_per_second=speed,
        mfu=meters.utilization(speed, setup.flops_per_token, peak, ranks.world_size),
        peak_flops=peak,
        is_peak_measured=setup.peak_flops is None,
        lrs=[
            (step, config.optimizer.lr * schedules.factor(step, last, config.scheduler, state.plateau))
            for step in shown
        ],
        notes=setup.corpus.notes,
    )


def _time_steps(setup: Setup) -> tuple[float, float]:
    """Seconds and scored tokens of a step, the mean of some."""
    settings, state = setup.config.trainer, setup.state
    assert state.optimizer is not None, "a model that is counted has no steps"
    steps = tokens = 0
    began = time.perf_counter()
    for number in range(WARMUP_STEPS + MOST_STEPS):
        if number == WARMUP_STEPS:
            began = time.perf_counter()
        step = min(state.step + number, settings.max_steps - 1)
        set_lr(state.optimizer, schedules.factor(step, settings.max_steps, setup.config.scheduler, state.plateau))
        batch, n_scored = micro_batches(setup.config, setup.streams["train"], step, state.device, setup.ranks)
        loss, grad_norm = update(
            setup.forward,
            state.optimizer,
            batch,
            state.number_format,
            settings.clip_norm,
            settings.clip_value,
            setup.ranks,
        )
        is_scaled = state.number_format.scaler is not None
        if not math.isfinite(loss) or not (is_scaled or math.isfinite(grad_norm)):
            raise _diverged(f"at step {step + 1}: loss {loss}, gradient norm {grad_norm}")
        if number >= WARMUP_STEPS:
            steps, tokens = steps + 1, tokens + n_scored
            if setup.ranks.max(time.perf_counter() - began) > MOST_SECONDS:
                break
    return (time.perf_counter() - began) / steps, tokens / steps


def _time_evaluation(setup: Setup) -> float:
    began = time.perf_counter()
    assert setup.state.optimizer is not None, "a model that is counted has no steps"
    with evaluation_weights(setup.state.optimizer):
        loss = split_loss(setup, "val")
        if not math.isfinite(loss):
            raise _diverged(f"within the steps that were tried: validation loss {loss}")
        if setup.config.trainer.sample_tokens:
            write_sample(setup)
    took = time.perf_counter() - began
    return took * (2 if setup.state.averages is not None else 1)


def _diverged(how: str) -> DivergedError:
    return DivergedError(f"the dry run diverged {how}", where="trainer.dry_run", hint=DIVERGED_HINT)


def _time_save(
    setup: Setup, weights: dict[str, torch.Tensor], tree: Any, averages: Averages | None
) -> tuple[float, int]:
    """Seconds and bytes of a checkpoint, written where the run's would be and taken away again."""
    setup.run.path.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".dry-run-", dir=setup.run.path))
    try:
        began = time.perf_counter()
        about = {**setup.about, "settings": recorded(setup.config)}
        snapshot = checkpoint.take_snapshot(setup.state.step, weights, tree, about, averages)
        copied = time.perf_counter() - began
        saved = checkpoint.write(folder, snapshot)
        took = time.perf_counter() - began
        size = sum(path.stat().st_size for path in saved.path.iterdir())
        return copied if setup.config.trainer.save_in_background else took, size
    finally:
        shutil.rmtree(folder)


def show(found: Estimate) -> None:
    """Prints an estimate."""
    from nanolm.tables import Console, Table, cell

    console = Console()
    for note in found.notes:
        console.print(cell(note))
    table = Table(["", ""], "ll")
    table.columns[0].style = "bold"
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("tokens", f"{found.tokens:,}, {found.epochs:.2f} times the train split")
    table.add_row("tokens a parameter", f"{found.tokens / max(found.parameters, 1):,.1f}")
    if found.flops is not None:
        table.add_row("FLOPs", f"{found.flops:.3g}")
    held = ", ".join(f"{name} {in_units(amount)}" for name, amount in found.memory.items())
    peak = "" if found.peak_by_formula is None else f"{in_units(found.peak_by_formula)} at the peak of a step: "
    table.add_row("memory, by formula", f"{peak}{held}")
    if found.peak_memory is not None:
        table.add_row("memory, measured", f"{in_units(found.peak_memory)} at most")
    table.add_row("a checkpoint", in_units(found.checkpoint_bytes))
    table.add_row("lr", ", ".join(f"{lr:.3g} at {step:,}" for step, lr in found.lrs))
    table.add_row("speed", f"{found.tokens_per_second:,.0f} tokens/s, {found.step_seconds * 1000:.3g} ms a step")
    if found.mfu is not None and found.peak_flops is not None:
        kind = "measured in matrix products now" if found.is_peak_measured else "that the device is known for"
        table.add_row("MFU", f"{found.mfu:.1%} of {found.peak_flops / 1e9:,.0f} GFLOP/s, {kind}")
    parts = {
        "steps": (found.steps, found.step_seconds),
        "evaluations": (found.evaluations, found.evaluation_seconds),
        "saves": (found.saves, found.save_seconds),
    }
    shares = ", ".join(f"{times:,} {name} {in_time(times * seconds)}" for name, (times, seconds) in parts.items())
    table.add_row("time, about", f"{in_time(found.seconds)}: {shares}")
    console.print(table)
    console.print("a dry run: nothing was written; leave trainer.dry_run=true out to train")
