"""Train a model in a run directory: `training` prepares the run, `loop` is the training loop.

Both are generators that yield after each update, so that whoever drives them can look inside. `train` drives them to
the end. A model that is fitted in one pass, such as an n-gram model, has `fit` in place of the loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Generator
from typing import IO, ParamSpec

import torch

from nanolm.config.batch_schedule import stage_at, total_tokens
from nanolm.config.fields import flat
from nanolm.config.identity import describe_changes
from nanolm.config.run import Config
from nanolm.data.conversation import template_of
from nanolm.data.download import only_if_asked
from nanolm.data.prompt import choose_message, choose_prompt
from nanolm.errors import DivergedError
from nanolm.model.build import FittedModel
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log, NoLog
from nanolm.runs.loggers import About, open_logger
from nanolm.runs.metrics import TRAIN, MetricsRow
from nanolm.runs.privacy import plain
from nanolm.runs.summary import FINISHED, STOPPED_EARLY, Summary, write_final_summary
from nanolm.training import early_stop, ema, memory, meters, profiling, schedules, summaries
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.announcement import announce
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks, translate_rank_errors
from nanolm.training.evaluation import evaluate
from nanolm.training.fitting import fit
from nanolm.training.gating import NonFiniteFlag
from nanolm.training.held_out import score_test_split
from nanolm.training.minutes import fix_steps
from nanolm.training.optimizers.build import evaluation_weights
from nanolm.training.pace import Pace, times_due
from nanolm.training.results import StepResult
from nanolm.training.run_files import (
    note_first_checkpoint,
    open_log,
    record,
    translate_disk_errors,
    write_first_files,
)
from nanolm.training.session import Session
from nanolm.training.setup import prepare
from nanolm.training.step import Step, micro_batches, set_lr, update
from nanolm.training.stop import StopRequest
from nanolm.training.timing import Clock
from nanolm.training.torch_errors import translate_torch_errors

P = ParamSpec("P")

# Steps that the host runs ahead of the device at most.
MAX_UNVERIFIED = 1000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        summary: as in summary.json.
        exit_status: 0, or that of a process that a signal ended.
        sample: the last text sample.
        prompt: a prompt from the training text.
    """

    summary: Summary
    exit_status: int
    sample: str
    prompt: str


Training = Generator[Step, bool | None, Outcome]


def training(
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
    asked: Collection[str] | None = None,
    started: float | None = None,
    clock: Clock = time.perf_counter,
) -> Training:
    """Train a model in a run directory that this process has claimed, or resume the run in it.

    Every rank calls it with the same arguments; rank 0 has claimed the directory for all. Sending True ends the run
    after the current step and a checkpoint, as a signal does.

    Args:
        config: checked settings.
        run: an empty directory, or the run to resume.
        choices: the option chosen in each config group, for the summary.
        changes: descriptions of settings that differ from those of the run, for the log.
        show_bar: whether to show a progress bar; None shows it on a terminal and in a notebook.
        bar_file: where the bar is drawn; None is stderr.
        quiet: write messages to train.log only.
        ranks: the processes that train together.
        stop: the request that ends the run after the current step and a checkpoint; None: only signals make one.
        parent: the checkpoint to fork from, if the run has no checkpoint yet.
        group: the sweep that the run belongs to; None keeps that of a resumed run.
        profile: whether to trace a few steps with PyTorch's profiler.
        asked: the settings whose addresses may be downloaded from; None: all of them.
        started: when the command started, for trainer.max_minutes; None: now.
        clock: monotonic seconds, which steps are timed by for trainer.max_minutes.

    Yields:
        Each update, before it is logged, evaluated and saved.

    Returns:
        The result of the run.

    Raises:
        NanolmError: the data, the device or the checkpoint cannot be used; nothing has been written.
        DivergedError: a loss or gradient is not finite.
        DiskError: a file of the run cannot be written; a last checkpoint is saved if there is room for it.
        OutOfMemoryError: an allocation failed.
        RankError: another rank ended or does not answer.
    """
    began = time.perf_counter()
    started = clock() if started is None else started
    keep_freed_memory()
    with memory.translate_memory_errors(config), contextlib.nullcontext() if asked is None else only_if_asked(asked):
        setup = fix_steps(prepare(config, run, ranks, parent), started, clock)
        config = setup.config
        meters.reset_peak_memory(setup.state.device)
        before = run.read_summary()
        summary = summaries.initial(setup, before, choices or {}, group)
        if summary.continued_from == setup.state.step:
            setup.state.stalled = 0
    changes = [*dict.fromkeys([*(changes or []), *describe_changes(setup.resume_info.changes)])]
    changes += summaries.machine_changes(before, summary)
    # From here on there is a run, which a signal ends with a checkpoint.
    with stop or StopRequest() as stop:
        skipped = ranks.run_on_main(lambda: write_first_files(setup, summary))
        logs: list[Log] = []
        file_sizes = setup.resume_info.file_offsets
        ranks.run_on_main(lambda: logs.append(open_log(run, file_sizes, show_bar, bar_file, quiet, setup.hashes)))
        with contextlib.closing(logs[0] if logs else NoLog()) as log:
            saver = Saver(run.checkpoints, config.trainer, log.note, functools.partial(note_first_checkpoint, run))
            session = Session(setup, log, saver, profile)
            announce(setup, log.say, summary, skipped, changes)
            if ranks.is_main:
                log.logger = open_logger(config.logger, run, About(flat(config), summary), log.say)
                summary = dataclasses.replace(summary, **log.logger.about())
            ranks.run_on_main(lambda: record(run, summary))
            return (yield from _train(session, stop, summary, began))


def _to_the_end(start: Callable[P, Training]) -> Callable[P, Outcome]:
    """Return a function that drives a training generator to its end, and returns its result."""

    @functools.wraps(start)
    def train(*args: P.args, **kwargs: P.kwargs) -> Outcome:
        steps = start(*args, **kwargs)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    return train


train = _to_the_end(training)


def _train(session: Session, stop: StopRequest, summary: Summary, began: float) -> Training:
    """Run the loop or the fit, and write the summary however it ends."""
    setup = session.setup
    status, error_text = "failed", None
    text = ""
    is_fitted = isinstance(setup.state.model, FittedModel)
    try:
        with (
            translate_disk_errors(setup.run),
            translate_rank_errors(setup.run.path),
            memory.translate_memory_errors(setup.config),
            translate_torch_errors(),
            session.saver,
        ):
            text = yield from fit(session, began) if is_fitted else loop(session, stop, began)
        is_done = is_fitted or setup.state.step >= setup.config.trainer.steps
        status = "completed" if is_done else "pruned" if stop.is_pruned else "interrupted"
        if status == "interrupted" and not stop.signal and early_stop.has_stalled(setup.state, setup.config.trainer):
            status = STOPPED_EARLY
            session.log.say(early_stop.describe(setup.state, setup.config.trainer))
        if status in FINISHED:
            summary = dataclasses.replace(summary, **score_test_split(session, summary))
    except (KeyboardInterrupt, GeneratorExit):
        status = "interrupted"
        raise
    except DivergedError:
        status = "diverged"
        raise
    except Exception as error:
        error_text = plain(f"{type(error).__name__}: {error}")
        raise
    finally:
        summary = dataclasses.replace(
            summary,
            status=status,
            error=error_text,
            has_checkpoint=summary.has_checkpoint or session.saver.has_saved,
            **summaries.results(setup.state, setup.streams["val"]),
        )
        if setup.ranks.is_main:
            write_final_summary(setup.run.summary, summary)
        session.log.logger.close(summary)
    template = template_of(setup.config.dataset)
    choose = choose_prompt if template is None else functools.partial(choose_message, template=template)
    prompt = choose(setup.streams["train"], setup.tokenizer)
    return Outcome(summary, stop.exit_status, text, prompt)


def loop(session: Session, stop: StopRequest, began: float) -> Generator[Step, bool | None, str]:
    """Train until trainer.max_steps or a stop request, and return the last sample.

    Batches and the learning rate are functions of the step, so that resuming is not a special case. A step is yielded
    before it writes its row, is evaluated and is saved, so that a checkpoint covers all of these up to its step.

    The host runs ahead of the device: it verifies that losses and gradients are finite only before it writes a row,
    evaluates or saves. Until then, the device skips every update after one that is not finite.
    """
    setup, log = session.setup, session.log
    config, state, ranks = setup.config, setup.state, setup.ranks
    settings, optimizer, train_stream = config.trainer, state.optimizer, setup.streams["train"]
    assert optimizer is not None, "a fitted model has no steps"
    began -= state.seconds
    text = ""
    is_better, is_stopping = False, early_stop.has_stalled(state, settings)
    pace = Pace(state.timed_tokens, state.timed_seconds)
    log.start_bar(settings.steps, state.step, lambda: _seconds_left(session, pace))
    flag = NonFiniteFlag(state.device)
    with _profiler(session) as profile_step:
        is_slow_at_first, shapes_seen = has_slow_first_step(setup.is_compiled, state.device), set[tuple[int, int]]()
        while state.step < settings.steps and not is_stopping:
            lr_factor = schedules.factor(state.step, settings.steps, config.scheduler, state.plateau)
            lr = config.optimizer.lr * lr_factor
            set_lr(optimizer, lr_factor)
            stage = stage_at(config, state.step)
            batch, n_scored = micro_batches(config, train_stream, state.step, state.device, ranks)
            clipping = (settings.clip_norm, settings.clip_value)
            how = (state.number_format, *clipping, ranks, n_scored, flag, setup.loss_fn)
            result = update(setup.forward, optimizer, batch, *how)
            session.record(result, lr, n_scored)
            if state.averages is not None:
                ema.update(state.averages, state.model, ema.decay_at(settings, state.step), result.is_skipped)
            is_last = state.step == settings.steps
            is_row_due = state.step % settings.log_every == 0 or is_last
            is_evaluation_due = state.step % settings.eval_every == 0 or is_last
            is_timed = not (is_slow_at_first and stage.shape not in shapes_seen)
            shapes_seen.add(stage.shape)
            if is_row_due or is_evaluation_due or not is_timed or len(session.unverified) == MAX_UNVERIFIED:
                session.verify()
            pace.step(n_scored, is_timed, stage.tokens_per_step)
            is_left = yield Step(state.step, lr, state.model, batch, result)
            if is_left:
                stop.leave()
            pace.restart()
            profile_step()
            log.advance()

            if is_row_due:
                state.seconds = time.perf_counter() - began
                log.row(_train_row(session, pace, lr, result))
                state.loss_sum, state.loss_steps = 0.0, 0

            if is_evaluation_due:
                with pace.paused("evaluation"), evaluation_weights(optimizer):
                    is_better, text = evaluate(session, began, is_last)
                stop.check_pruning(state.step, state.val_loss, ranks)

            is_stopping = stop.is_requested(ranks, log.failure is not None) or early_stop.has_stalled(state, settings)
            is_save_due = session.is_save_due() or is_last or is_better or is_stopping
            if is_save_due or result.is_read:
                # If the caller has read a number that is not finite, the run ends now.
                session.verify()
            if is_save_due:
                with pace.paused("save"), evaluation_weights(optimizer):
                    state.seconds = time.perf_counter() - began
                    state.timed_tokens, state.timed_seconds = pace.tokens, pace.seconds
                    session.save()
                is_better = False
    if is_stopping and state.step < settings.steps:
        # The checkpoint of the last step covers all rows.
        ranks.run_on_main(log.require_written)
    return text


def has_slow_first_step(is_compiled: bool, device: torch.device) -> bool:
    """Return whether the first step with each shape of batches is much slower, and is excluded from the speed.

    It compiles the model, or loads the kernels of a GPU and creates the handles of its libraries.
    """
    return is_compiled or device.type == "cuda"


def _train_row(session: Session, pace: Pace, lr: float, result: StepResult) -> MetricsRow:
    """Return the row of metrics.jsonl for the steps since the previous row."""
    setup, state = session.setup, session.setup.state
    speed = pace.tokens_per_second()
    flops_per_token = setup.flops_by_context.get(stage_at(setup.config, state.step - 1).context_length)
    used = meters.utilization(speed, flops_per_token, setup.peak_flops, setup.ranks.world_size)
    norms = meters.norms(state.model, setup.ranks) if setup.config.trainer.log_norms else {}
    return MetricsRow(
        step=state.step,
        split=TRAIN,
        loss=state.loss_sum / state.loss_steps,
        lr=lr,
        grad_norm=None if result.has_overflowed else result.grad_norm,
        skipped_updates=None if state.number_format.scaler is None else state.skipped_updates,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        tokens_per_second=None if speed is None else round(speed, 1),
        mfu=None if used is None else round(used, 4),
        weight_norms=norms.get("weight_norms"),
        grad_norms=norms.get("grad_norms"),
    )


def _seconds_left(session: Session, pace: Pace) -> float | None:
    """Estimate the seconds to the end of the run, including evaluations and saves."""
    settings, step = session.setup.config.trainer, session.setup.state.step
    intervals = {"evaluation": settings.eval_every, "save": settings.save_every}
    pauses = {reason: times_due(step, settings.steps, every) for reason, every in intervals.items()}
    return pace.seconds_left(total_tokens(session.setup.config, first=step), pauses)


def _profiler(session: Session) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """Return the function to call after each step; it traces a few of them if profiling is on."""
    steps = session.setup.config.trainer.steps - session.setup.state.step
    if not (session.profile and session.setup.ranks.is_main and steps):
        return contextlib.nullcontext(lambda: None)
    return profiling.traced(session.setup.run.profile, steps, session.log.say)
