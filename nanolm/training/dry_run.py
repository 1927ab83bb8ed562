"""Dry runs: the time, memory and disk space of a run, estimated from a few of its steps."""

from __future__ import annotations

import dataclasses
import time

from nanolm.config.batch_schedule import stages
from nanolm.config.budget import budget_of
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.model import memory_estimate
from nanolm.model.budget import describe_steps
from nanolm.model.build import FittedModel, count_parameters
from nanolm.model.shapes import has_formula
from nanolm.runs.directory import RunDirectory
from nanolm.training import meters, schedules
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks
from nanolm.training.memory import translate_memory_errors
from nanolm.training.minutes import fix_steps
from nanolm.training.pace import times_due
from nanolm.training.setup import Setup, prepare
from nanolm.training.timing import time_evaluation, time_save, time_steps
from nanolm.training.torch_errors import translate_torch_errors
from nanolm.wording import format_bytes, format_duration

# Limits on the timed steps, of all stages together.
MAX_STEPS, MAX_SECONDS = 50, 5.0

# Number of steps at which the learning rate is shown.
SHOWN_STEPS = 9


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the rest of a run needs.

    Attributes:
        budget: the steps that a budget has been turned into; empty for one in steps.
        tokens: scored tokens of the remaining steps.
        epochs: those tokens relative to the train split.
        flops: of the remaining steps; None without a formula.
        memory: bytes by purpose, by formula.
        peak_by_formula: bytes at the peak of a step, when not all of these are live at once; None without a formula.
        peak_memory: measured peak in bytes; None if the system does not report it.
        durations: number of remaining steps, evaluations and saves, without the saves of new best losses between
            regular ones, and the measured seconds of one each.
        mfu: model FLOPs utilization; None if unknown.
        peak_flops: FLOPs per second of the device.
        is_peak_measured: whether peak_flops was measured now, instead of taken from the data sheet.
        lrs: (step, lr) at some steps.
        notes: remarks on the text.
    """

    budget: str
    parameters: int
    tokens: int
    epochs: float
    flops: int | None
    memory: dict[str, int]
    peak_by_formula: int | None
    peak_memory: int | None
    checkpoint_bytes: int
    durations: dict[str, tuple[int, float]]
    tokens_per_second: float
    mfu: float | None
    peak_flops: float | None
    is_peak_measured: bool
    lrs: list[tuple[int, float]]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Duration of the rest of the run."""
        return sum(times * seconds for times, seconds in self.durations.values())


def dry_run(
    config: Config, run: RunDirectory, *, ranks: Ranks = SINGLE_PROCESS, parent: Parent | None = None
) -> Estimate:
    """Prepare a run as `train` does, time some steps, one evaluation and one save, and leave no files.

    Args:
        run: an empty directory, or the run to resume, which is not changed.
        parent: the checkpoint to fork from.

    Raises:
        NanolmError: the data, the device or the checkpoint cannot be used, or the model has no steps.
        DivergedError: a loss or gradient is not finite.
        OutOfMemoryError: an allocation failed.
    """
    began = time.perf_counter()
    keep_freed_memory()
    with translate_memory_errors(config), translate_torch_errors():
        return _estimate(fix_steps(prepare(config, run, ranks, parent), began))


def _estimate(setup: Setup) -> Estimate:
    config, settings, state = setup.config, setup.config.trainer, setup.state
    if isinstance(state.model, FittedModel):
        raise SettingsError(
            f"model={config.model.name} is fitted in one pass: there are no steps to time",
            where="dry_run",
            hint="leave dry_run out; fitting takes seconds",
        )
    meters.reset_peak_memory(state.device)
    first, last = state.step, settings.steps
    timed = _time_stages(setup)
    step_seconds, speed = timed.seconds / timed.steps, timed.tokens / timed.seconds
    n_evaluations = times_due(first, last, settings.eval_every)
    evaluation_seconds, exact_seconds = time_evaluation(setup)
    evaluation_seconds += exact_seconds / max(n_evaluations, 1)
    peak_memory = meters.peak_memory(state.device)
    save = time_save(setup)
    peak = setup.peak_flops or meters.measure_peak_flops(state.device, state.number_format.dtype)
    n_parameters = count_parameters(state.model)
    vocab_size, number_format = setup.tokenizer.vocab_size, state.number_format.name
    memory = {part.name: part.amount for part in memory_estimate.state_memory(config, n_parameters, vocab_size)}
    peak_by_formula = None
    if has_formula(config):
        memory["activations"] = memory_estimate.activation_memory(config, vocab_size, number_format).amount
        peak_by_formula = memory_estimate.peak_memory(config, n_parameters, vocab_size, number_format)
    if state.averages is not None:
        memory["averages"] = memory["gradients"]
    tokens = round(timed.tokens) if last > first else 0
    shown = sorted({first + round((last - 1 - first) * n / (SHOWN_STEPS - 1)) for n in range(SHOWN_STEPS)})
    return Estimate(
        budget="" if budget_of(settings).in_steps else describe_steps(config),
        parameters=n_parameters,
        tokens=tokens,
        epochs=tokens / len(setup.streams["train"].tokens),
        flops=None if timed.flops_per_token is None else round(tokens * timed.flops_per_token),
        memory=memory,
        peak_by_formula=peak_by_formula,
        peak_memory=peak_memory,
        checkpoint_bytes=save.n_bytes,
        durations={
            "steps": (last - first, step_seconds),
            "evaluations": (n_evaluations, evaluation_seconds),
            "saves": (times_due(first, last, settings.save_every), save.in_loop),
        },
        tokens_per_second=speed,
        mfu=meters.utilization(speed, timed.flops_per_token, peak, setup.ranks.world_size),
        peak_flops=peak,
        is_peak_measured=setup.peak_flops is None,
        lrs=[
            (step, config.optimizer.lr * schedules.factor(step, last, config.scheduler, state.plateau))
            for step in shown
        ],
        notes=setup.corpus.notes,
    )


@dataclasses.dataclass(frozen=True)
class _Timed:
    """The remaining steps of a run; of a run at its end, its last one."""

    steps: int
    seconds: float
    tokens: float
    flops_per_token: float | None


def _time_stages(setup: Setup) -> _Timed:
    """Time some steps of every remaining stage, and add up what all of its steps take."""
    first = min(setup.state.step, setup.config.trainer.steps - 1)
    remaining = [stage for stage in stages(setup.config) if stage.end > first]
    n_steps, seconds, tokens, flops = 0, 0.0, 0.0, 0.0
    for stage in remaining:
        begin, n_left = max(stage.start, first), stage.steps_from(first)
        limits = (max(1, MAX_STEPS // len(remaining)), MAX_SECONDS / len(remaining))
        step = time_steps(setup, stage, begin, *limits)
        n_steps, seconds, tokens = n_steps + n_left, seconds + n_left * step.seconds, tokens + n_left * step.tokens
        flops += n_left * step.tokens * setup.flops_by_context.get(stage.context_length, 0)
    return _Timed(n_steps, seconds, tokens, flops / tokens if setup.flops_by_context else None)


def print_estimate(found: Estimate) -> None:
    """Print an estimate as a table."""
    from nanolm.tables import Console, Table, cell

    console = Console()
    for note in found.notes:
        console.print(cell(note))
    table = Table(["", ""], "ll")
    table.columns[0].style = "bold"
    if found.budget:
        table.add_row("budget", found.budget)
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("tokens", f"{found.tokens:,}, {found.epochs:.2f} times the train split")
    table.add_row("tokens per parameter", f"{found.tokens / max(found.parameters, 1):,.1f}")
    if found.flops is not None:
        table.add_row("FLOPs", f"{found.flops:.3g}")
    held = ", ".join(f"{name} {format_bytes(amount)}" for name, amount in found.memory.items())
    peak = "" if found.peak_by_formula is None else f"{format_bytes(found.peak_by_formula)} at the peak of a step: "
    table.add_row("memory (formula)", f"{peak}{held}")
    if found.peak_memory is not None:
        table.add_row("memory (measured)", f"{format_bytes(found.peak_memory)} at the peak")
    table.add_row("checkpoint size", format_bytes(found.checkpoint_bytes))
    table.add_row("lr", ", ".join(f"{lr:.3g} at {step:,}" for step, lr in found.lrs))
    step_seconds = found.durations["steps"][1]
    table.add_row("speed", f"{found.tokens_per_second:,.0f} tokens/s, {step_seconds * 1000:.3g} ms per step")
    if found.mfu is not None and found.peak_flops is not None:
        kind = "measured with matmuls" if found.is_peak_measured else "by the data sheet"
        table.add_row("MFU", f"{found.mfu:.1%} of {found.peak_flops / 1e9:,.0f} GFLOP/s, {kind}")
    shares = ", ".join(
        f"{times:,} {name[:-1] if times == 1 else name} {format_duration(times * seconds)}"
        for name, (times, seconds) in found.durations.items()
    )
    table.add_row("estimated time", f"{format_duration(found.seconds)}: {shares}")
    console.print(table)
    console.print("dry run: nothing was written; leave dry_run=true out to train")
