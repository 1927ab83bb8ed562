"""A run from its settings to its summary. `train` prepares, `loop` is the training itself, on one page.

A model that is counted has `count` in place of the loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import IO

import torch

from nanolm import shell
from nanolm.config.fields import flat
from nanolm.config.identity import describe_changes, recorded
from nanolm.config.run import Config
from nanolm.config.yaml_io import save_yaml
from nanolm.data import tokenizers
from nanolm.data.prompt import choose_prompt
from nanolm.errors import DiskError, DivergedError
from nanolm.files import write_durably
from nanolm.model.build import FittedModel
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log, NoLog
from nanolm.runs.loggers import About, open_logger
from nanolm.runs.metrics import TRAIN, MetricsRow
from nanolm.runs.summary import Summary, update_summary, write_final_summary, write_summary
from nanolm.training import ema, memory, meters, profiling, schedules, summaries
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.announcement import announce
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks, translate_rank_errors
from nanolm.training.divergence import diverged_error
from nanolm.training.evaluation import evaluate, split_loss
from nanolm.training.optimizers.build import evaluation_weights
from nanolm.training.pace import Pace, times_due
from nanolm.training.setup import Session, Setup, prepare
from nanolm.training.step import micro_batches, set_lr, update
from nanolm.training.stop import StopRequest
from nanolm.training.torch_errors import translate_torch_errors


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: its summary, its exit status, the last sample of its writing, and a prompt from its text."""

    summary: Summary
    exit_status: int
    sample: str
    prompt: str


@memory.translates_memory_errors
def train(
    config: Config,
    run: RunDirectory,
    *,
    choices: dict[str, str] | None = None,
    changes: list[str] | None = None,
    show_bar: bool | None = None,
    bar_file: IO[str] | None = None,
    quiet: bool = False,
    ranks: Ranks = SINGLE_PROCESS,
    stop: StopRequest | None = None,
    parent: Parent | None = None,
    group: str | None = None,
    profile: bool = False,
) -> Outcome:
    """Trains a model in a run directory that this process has claimed, or goes on with the run that is there.

    Of several ranks each calls it with the same arguments, and rank 0 has claimed the directory for all.

    Args:
        config: checked settings.
        run: empty, or the run to go on with.
        choices: the option chosen in each group, for people to read.
        changes: what differs from the run's own settings, when it goes on.
        show_bar: None shows the bar on a terminal alone.
        bar_file: where the bar is drawn; None is stderr.
        quiet: what is said goes to train.log alone.
        ranks: the processes that train together.
        stop: the request that ends the run after the current step and a checkpoint; None: only signals make one.
        parent: where the run begins as a fork, if it has no checkpoint of its own yet.
        group: the sweep that the run is a job of; None: none, or that of the run that goes on.
        profile: whether to trace a few steps with PyTorch's profiler.

    Raises:
        NanolmError: the data, the device or the checkpoint is not as it must be; nothing was written by then.
        DivergedError: the loss or its gradient is not finite.
        OutOfMemoryError: memory was refused.
        RankError: another rank has ended or does not answer.
    """
    began = time.perf_counter()
    keep_freed_memory()
    setup = prepare(config, run, ranks, parent)
    meters.reset_peak_memory(setup.state.device)
    before = run.read_summary()
    summary = summaries.initial(setup, before, choices or {}, group)
    changes = [*dict.fromkeys([*(changes or []), *describe_changes(setup.resume_info.changes)])]
    changes += summaries.machine_changes(before, summary)
    # From the moment that there is a run, signals end it with a save.
    with stop or StopRequest() as stop:
        if ranks.is_main:
            text = tokenizers.to_text(config.tokenizer.name, setup.tokenizer)
            write_durably(run.tokenizer, text.encode())
            write_summary(run.summary, summary)
            write_durably(run.config, save_yaml(config).encode())  # the mark that a run is here: last
        passed_over = ranks.run_on_main(lambda: _set_aside(setup))
        with contextlib.closing(
            Log(run, setup.resume_info.file_offsets, show_bar, bar_file, quiet) if ranks.is_main else NoLog()
        ) as log:
            saver = Saver(run.checkpoints, config.trainer, log.note, functools.partial(_note_first_checkpoint, run))
            session = Session(**vars(setup), log=log, saver=saver, profile=profile)
            announce(session, summary, passed_over, changes)
            if ranks.is_main:
                log.logger = open_logger(config.logger, run, About(flat(config), summary), log.say)
                summary = dataclasses.replace(summary, **log.logger.about())
                write_summary(run.summary, summary)
            return _train(session, stop, summary, began)


def _note_first_checkpoint(run: RunDirectory) -> None:
    """Records in summary.json that the run has been saved: without checkpoints it must not start again unnoticed."""
    with contextlib.suppress(OSError):
        update_summary(run.summary, has_checkpoint=True)


def _set_aside(setup: Setup) -> list[str]:
    """Puts damaged checkpoints out of the way; says of each what is wrong and where it is."""
    if not setup.damaged:
        return []
    aside = checkpoint.quarantine(setup.run.checkpoints, setup.state.step)
    return [f"{error.found}; kept as {path.name}" for error, path in zip(setup.damaged, aside, strict=True)]


def _train(session: Session, stop: StopRequest, summary: Summary, began: float) -> Outcome:
    """Runs the loop, or counts, and writes how it ended whatever happens in it."""
    status, error_text = "failed", None
    text = ""
    is_counted = isinstance(session.state.model, FittedModel)
    try:
        with (
            translate_rank_errors(session.run.path),
            memory.translate_memory_errors(session.config),
            translate_torch_errors(),
            session.saver,
        ):
            text = count(session, began) if is_counted else loop(session, stop, began)
        is_done = is_counted or session.state.step >= session.config.trainer.max_steps
        status = "completed" if is_done else "interrupted" if stop.signal else "pruned"
    except DivergedError:
        status = "diverged"
        raise
    except OSError as error:
        error_text = str(error)
        raise DiskError(
            f"the run cannot be written: {error.strerror or error}",
            where=str(error.filename or session.run.path),
            hint=f"make room, then go on from the last good checkpoint: {shell.resume_command(session.run.path)}",
        ) from error
    except Exception as error:
        error_text = f"{type(error).__name__}: {error}"
        raise
    finally:
        summary = dataclasses.replace(
            summary,
            status=status,
            error=error_text,
            has_checkpoint=summary.has_checkpoint or session.saver.has_saved,
            **summaries.results(session.state, session.streams["val"]),
        )
        if session.ranks.is_main:
            write_final_summary(session.run.summary, summary)
        session.log.logger.close(summary)
    prompt = choose_prompt(session.streams["train"], session.tokenizer)
    return Outcome(summary, stop.exit_status, text, prompt)


def loop(session: Session, stop: StopRequest, began: float) -> str:
    """Steps until trainer.max_steps or until it is told to stop; returns the last sample.

    Batches and the learning rate are functions of the step, so that going on from a checkpoint is no special case.
    """
    config, state, log = session.config, session.state, session.log
    settings, optimizer, ranks, train_stream = config.trainer, state.optimizer, session.ranks, session.streams["train"]
    assert optimizer is not None, "a model that is counted has no steps"
    began -= state.seconds
    text = ""
    is_better = is_stopping = False
    pace = Pace(state.timed_tokens, state.timed_seconds)
    log.start_bar(settings.max_steps, state.step, lambda: _seconds_left(session, pace))
    with _profiler(session) as profile_step:
        is_first = has_slow_first_step(settings.compile, state.device)
        while state.step < settings.max_steps and not is_stopping:
            lr_factor = schedules.factor(state.step, settings.max_steps, config.scheduler, state.plateau)
            set_lr(optimizer, lr_factor)
            batch, n_scored = micro_batches(config, train_stream, state.step, state.device, ranks)
            clipping = (settings.clip_norm, settings.clip_value)
            loss, grad_norm = update(session.forward, optimizer, batch, state.number_format, *clipping, ranks)
            # Under fp16 a gradient may overflow: that update is skipped, and the loss scale is lowered.
            is_skipped = not math.isfinite(grad_norm)
            has_diverged = is_skipped and (state.number_format.scaler is None or state.number_format.is_exhausted)
            if not math.isfinite(loss) or has_diverged:
                raise diverged_error(session, loss, grad_norm, config.optimizer.lr * lr_factor)

            state.step += 1
            state.skipped_updates += is_skipped
            state.tokens += n_scored
            state.loss_sum += loss
            state.loss_steps += 1
            if state.averages is not None and settings.ema_decay is not None and not is_skipped:
                ema.update(state.averages, state.model, settings.ema_decay, state.step)
            pace.step(n_scored, counts=not is_first)
            is_first = False
            profile_step()
            log.advance()
            is_last = state.step == settings.max_steps

            if state.step % settings.log_every == 0 or is_last:
                state.seconds = time.perf_counter() - began
                log.row(_train_row(session, pace, config.optimizer.lr * lr_factor, grad_norm))
                state.loss_sum, state.loss_steps = 0.0, 0

            if state.step % settings.eval_every == 0 or is_last:
                with pace.paused("evaluation"), evaluation_weights(optimizer):
                    is_better, text = evaluate(session, began)
                stop.check_pruning(state.step, state.val_loss, ranks)

            is_stopping = stop.is_requested(ranks)
            if _is_save_due(session) or is_last or is_better or is_stopping:
                with pace.paused("save"), evaluation_weights(optimizer):
                    state.seconds = time.perf_counter() - began
                    state.timed_tokens, state.timed_seconds = pace.tokens, pace.seconds
                    _save(session)
                is_better = False
    return text


def has_slow_first_step(is_compiled: bool, device: torch.device) -> bool:
    """Whether the first step of a process takes much longer than the others, and its time is left out of the speed.

    It compiles the model, or loads the kernels of a GPU and makes the handles of its libraries.
    """
    return is_compiled or device.type == "cuda"


def _train_row(session: Session, pace: Pace, lr: float, grad_norm: float) -> MetricsRow:
    """The row of metrics.jsonl for the steps since the last one."""
    state = session.state
    speed = pace.tokens_per_second()
    used = meters.utilization(speed, session.flops_per_token, session.peak_flops, session.ranks.world_size)
    norms = meters.norms(state.model, session.ranks) if session.config.trainer.log_norms else {}
    return MetricsRow(
        step=state.step,
        split=TRAIN,
        loss=state.loss_sum / state.loss_steps,
        lr=lr,
        grad_norm=grad_norm if math.isfinite(grad_norm) else None,
        skipped_updates=None if state.number_format.scaler is None else state.skipped_updates,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        tokens_per_second=None if speed is None else round(speed, 1),
        mfu=None if used is None else round(used, 4),
        weight_norms=norms.get("weight_norms"),
        grad_norms=norms.get("grad_norms"),
    )


def _seconds_left(session: Session, pace: Pace) -> float | None:
    """To the end of the run, with the evaluations and saves that are to come."""
    settings, step = session.config.trainer, session.state.step
    intervals = {"evaluation": settings.eval_every, "save": settings.save_every}
    to_come = {reason: times_due(step, settings.max_steps, every) for reason, every in intervals.items()}
    return pace.seconds_left(settings.max_steps - step, to_come)


def _profiler(session: Session) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Return the function to call after each step; it traces a few of them if profiling is on."""
    steps = session.config.trainer.max_steps - session.state.step
    if not (session.profile and session.ranks.is_main and steps):
        return contextlib.nullcontext(lambda: None)
    return profiling.traced(session.run.profile, steps, session.log.say)


def count(session: Session, began: float) -> str:
    """Fits a counted model in one pass, which is its one step; returns the sample.

    Both losses are exact. The optimizer, the scheduler, and what the trainer says of steps and batches mean nothing
    here. Nothing is saved before the end: a run that is killed counts again.
    """
    state, log = session.state, session.log
    if state.step:
        return ""
    assert isinstance(state.model, FittedModel), "a model that is trained has steps"
    log.start_bar(1, 0)
    pace = Pace()
    tokens = session.streams["train"].tokens
    state.entries = state.model.fit(tokens)
    state.tokens = len(tokens)
    pace.step(state.tokens)
    state.timed_tokens, state.timed_seconds = pace.tokens, pace.seconds
    state.step = 1
    log.advance()
    loss = split_loss(session, "train")
    state.seconds = time.perf_counter() - began
    log.row(
        MetricsRow(
            step=state.step,
            split=TRAIN,
            loss=loss,
            tokens=state.tokens,
            seconds=round(state.seconds, 3),
            tokens_per_second=round(pace.tokens / pace.seconds, 1),
        )
    )
    _, text = evaluate(session, began)
    state.seconds = time.perf_counter() - began
    _save(session)
    return text


def _is_save_due(session: Session) -> bool:
    """Whether a checkpoint falls on this step; by rank 0's clock, where the time decides."""
    due = functools.partial(session.saver.is_due, session.state.step)
    return due() if session.config.trainer.save_every_minutes is None else session.ranks.run_on_main(due)


def _save(session: Session) -> None:
    """Saves a checkpoint; when it reads back, those go that need not stay."""
    state = session.state
    offsets, checksums = session.log.lengths(), session.log.checksums()
    about = {
        "val_loss": state.val_loss if math.isfinite(state.val_loss) else None,
        **session.about,
        "settings": recorded(session.config),
        "logs": {name: {"bytes": offsets[name], "sha256": checksums[name]} for name in offsets},
    }
    weights, tree, averages = state.full_weights(), state.state_dict(), state.full_averages()
    session.ranks.run_on_main(lambda: session.saver.save(state.step, weights, tree, about, state.best_step, averages))
