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
from pathlib import Path
from typing import IO, Any

import torch

from nanolm import shell
from nanolm.baselines import compressors
from nanolm.baselines.entropy import bigram_loss, unigram_loss
from nanolm.config.fields import flat
from nanolm.config.identity import describe_changes, recorded
from nanolm.config.run import Config
from nanolm.config.yaml_io import save_yaml
from nanolm.data import tokenizers
from nanolm.data.prompt import choose_prompt
from nanolm.data.tokens.stream import Stream
from nanolm.errors import DiskError, DivergedError
from nanolm.files import write_durably
from nanolm.model import masks
from nanolm.model.build import FittedModel, count_parameters
from nanolm.runs import provenance
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log, NoLog
from nanolm.runs.loggers import About, open_logger
from nanolm.training import ema, memory, meters, profiling, schedules
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.announcement import announce
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.checkpoints.state import TrainState
from nanolm.training.determinism import is_deterministic
from nanolm.training.distributed.ranks import SINGLE_PROCESS, Ranks, translate_rank_errors
from nanolm.training.evaluation import evaluate, exact_loss
from nanolm.training.optimizers.build import evaluation_weights
from nanolm.training.pace import Pace, times_due
from nanolm.training.precision import device_facts
from nanolm.training.setup import Session, Setup, diverged, micro_batches, prepare, set_lr
from nanolm.training.step import update
from nanolm.training.stop import StopRequest
from nanolm.training.torch_errors import translate_torch_errors

# The reference lines are counted anew at every start, at some ten million tokens a second.
COUNTABLE_TOKENS = 2**27


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: its summary, its exit status, the last sample of its writing, and a prompt from its text."""

    summary: dict[str, Any]
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
    should_prune: Callable[[int, float], bool] | None = None,
    parent: Parent | None = None,
    group: str | None = None,
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
        should_prune: asked after each evaluation with the step and the validation loss; True ends the run as pruned,
            behind a checkpoint.
        parent: where the run begins as a fork, if it has no checkpoint of its own yet.
        group: the sweep that the run is a job of; None: none, or that of the run that goes on.

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
    summary = {**_kept(before), **_about(setup, choices or {}), "group": group or before.get("group")}
    changes = [*dict.fromkeys([*(changes or []), *describe_changes(setup.continuation.changes)])]
    changes += _changes_of_machine(before, summary)
    # From the moment that there is a run, signals end it with a save.
    with StopRequest() as stop:
        if ranks.is_main:
            text = tokenizers.to_text(config.tokenizer.name, setup.tokenizer)
            write_durably(run.tokenizer, text.encode())
            run.write_summary({**before, **summary})
            write_durably(run.config, save_yaml(config).encode())  # the mark that a run is here: last
        passed_over = ranks.run_on_main(lambda: _set_aside(setup))
        with contextlib.closing(
            Log(run, setup.continuation.file_offsets, show_bar, bar_file, quiet) if ranks.is_main else NoLog()
        ) as log:
            saver = Saver(run.checkpoints, config.trainer, log.note, functools.partial(_note_first_checkpoint, run))
            session = Session(**vars(setup), log=log, saver=saver, should_prune=should_prune)
            announce(session, summary, passed_over, changes)
            if ranks.is_main:
                log.logger = open_logger(config.logger, run, About(flat(config), summary), log.say)
                summary |= log.logger.about()
                run.write_summary({**before, **summary})
            return _train(session, stop, summary, began)


def _about(setup: Setup, choices: dict[str, str]) -> dict[str, Any]:
    """What the summary of a run says from its beginning on."""
    config, state, streams, vocab_size = setup.config, setup.state, setup.streams, setup.tokenizer.vocab_size
    return {
        "status": "running",
        "has_checkpoint": setup.ranks.run_on_main(lambda: bool(checkpoint.folders(setup.run.checkpoints))),
        "choices": choices,
        "device": str(state.device),
        "deterministic": is_deterministic(config.trainer.deterministic, state.device),
        **device_facts(state.device),
        "ranks": setup.ranks.world_size,
        "seed": config.seed,
        "parameters": count_parameters(state.model),
        "flops_per_token": setup.flops_per_token,
        "vocab_size": vocab_size,
        "lossless": setup.tokenizer.lossless,
        "sees_future": bool(masks.noncausal_warnings(config)),
        "train_tokens": len(streams["train"].tokens),
        "val_tokens": len(streams["val"].tokens),
        "val_scored_tokens": streams["val"].scored_tokens,
        "reference_losses": setup.ranks.run_on_main(lambda: _reference_losses(streams, vocab_size)),
        "reference_bits_per_byte": setup.ranks.run_on_main(lambda: compressors.validation_bits_per_byte(setup.corpus)),
        **setup.about,
        "git": provenance.git(Path.cwd()),
        **({} if setup.parent is None else {"parent": setup.parent.reference()}),
    }


def _kept(before: dict[str, Any]) -> dict[str, Any]:
    """What a run that goes on keeps of its summary; None for what was never there."""
    return {name: before.get(name) for name in ("wandb_id", "wandb_mode", "wandb_project", "wandb_entity", "parent")}


def _note_first_checkpoint(run: RunDirectory) -> None:
    """Records in summary.json that the run has been saved: without checkpoints it must not start again unnoticed."""
    with contextlib.suppress(OSError):
        run.write_summary({**run.read_summary(), "has_checkpoint": True})


def _set_aside(setup: Setup) -> list[str]:
    """Puts damaged checkpoints out of the way; says of each what is wrong and where it is."""
    if not setup.damaged:
        return []
    aside = checkpoint.quarantine(setup.run.checkpoints, setup.state.step)
    return [f"{error.found}; kept as {path.name}" for error, path in zip(setup.damaged, aside, strict=True)]


def _changes_of_machine(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The number of ranks and the number format, where a resumed run has others than before."""
    names = [name for name in ("ranks", "precision") if name in before and before[name] != now[name]]
    return [f"{name}: {before[name]} -> {now[name]}" for name in names]


def _train(session: Session, stop: StopRequest, summary: dict[str, Any], began: float) -> Outcome:
    """Runs the loop, or counts, and writes how it ended whatever happens in it."""
    status = "failed"
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
        summary["error"] = str(error)
        raise DiskError(
            f"the run cannot be written: {error.strerror or error}",
            where=str(error.filename or session.run.path),
            hint=f"make room, then go on from the last good checkpoint: {shell.resume_command(session.run.path)}",
        ) from error
    except Exception as error:
        summary["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        summary["has_checkpoint"] = summary["has_checkpoint"] or session.saver.has_saved
        summary |= {"status": status, **_results(session.state, session.streams["val"])}
        if session.ranks.is_main:
            session.run.write_last_summary(summary)
        session.log.logger.close(summary)
    prompt = choose_prompt(session.streams["train"], session.tokenizer)
    return Outcome(summary, stop.exit_status if stop.signal else 0, text, prompt)


def loop(session: Session, stop: StopRequest, began: float) -> str:
    """Steps until trainer.max_steps or until it is told to stop; returns the last sample.

    Batches and the learning rate are functions of the step, so that going on from a checkpoint is no special case.
    """
    config, state, log = session.config, session.state, session.log
    settings, optimizer = config.trainer, session.state.optimizer
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
            parts, n_scored = micro_batches(session, state.step)
            loss, grad_norm = update(
                session.forward,
                optimizer,
                parts,
                state.number_format,
                settings.clip_norm,
                settings.clip_value,
                session.ranks,
            )
            # Under fp16 a gradient may overflow: that update is skipped, and the loss scale is lowered.
            is_skipped = not math.isfinite(grad_norm)
            has_diverged = is_skipped and (state.number_format.scaler is None or state.number_format.is_exhausted)
            if not math.isfinite(loss) or has_diverged:
                raise diverged(session, loss, grad_norm, config.optimizer.lr * lr_factor)

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
                is_stopping = _is_pruned(session)

            is_stopping = stop.is_asked(session.ranks) or is_stopping
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


def _train_row(session: Session, pace: Pace, lr: float, grad_norm: float) -> dict[str, Any]:
    """A row of metrics.jsonl; what is not known or not asked for is left out."""
    state = session.state
    speed = pace.tokens_per_second()
    used = meters.utilisation(speed, session.flops_per_token, session.peak_flops, session.ranks.world_size)
    return {
        "step": state.step,
        "split": "train",
        "loss": state.loss_sum / state.loss_steps,
        "lr": lr,
        **({"grad_norm": grad_norm} if math.isfinite(grad_norm) else {}),
        **({"skipped_updates": state.skipped_updates} if state.number_format.scaler is not None else {}),
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        **({} if speed is None else {"tokens_per_second": round(speed, 1)}),
        **({} if used is None else {"mfu": round(used, 4)}),
        **(meters.norms(state.model, session.ranks) if session.config.trainer.log_norms else {}),
    }


def _seconds_left(session: Session, pace: Pace) -> float | None:
    """To the end of the run, with the evaluations and saves that are to come."""
    settings, step = session.config.trainer, session.state.step
    intervals = {"evaluation": settings.eval_every, "save": settings.save_every}
    to_come = {reason: times_due(step, settings.max_steps, every) for reason, every in intervals.items()}
    return pace.seconds_left(settings.max_steps - step, to_come)


def _profiler(session: Session) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """What is called behind every step; it traces some of them where trainer.profile asks for it."""
    steps = session.config.trainer.max_steps - session.state.step
    if not (session.config.trainer.profile and session.ranks.is_main and steps):
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
    loss = exact_loss(session, "train")
    state.seconds = time.perf_counter() - began
    log.row(
        {
            "step": state.step,
            "split": "train",
            "loss": loss,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            "tokens_per_second": round(pace.tokens / pace.seconds, 1),
        }
    )
    _, text = evaluate(session, began)
    state.seconds = time.perf_counter() - began
    _save(session)
    return text


def _is_pruned(session: Session) -> bool:
    """Whether the one who asked for this run gives it up for the loss that was just measured."""
    if session.should_prune is None:
        return False
    should_prune, state = session.should_prune, session.state
    return session.ranks.run_on_main(lambda: should_prune(state.step, state.val_loss))


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


def _reference_losses(streams: dict[str, Stream], vocab_size: int) -> dict[str, float]:
    """What counting reaches on the same validation tokens, in nats a token; nothing where counting takes minutes."""
    train, val = streams["train"].tokens, streams["val"].tokens
    if len(train) > COUNTABLE_TOKENS:
        return {}
    return {
        "counted_unigram": unigram_loss(train, val, vocab_size),
        "counted_bigram": bigram_loss(train, val, vocab_size),
    }


def _results(state: TrainState, val: Stream) -> dict[str, Any]:
    """The figures of a summary; None for what was never measured. Only a counted model's has "entries"."""

    def known(loss: float) -> float | None:
        return loss if math.isfinite(loss) else None

    best = known(state.best_val_loss)
    return {
        "step": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.timed_tokens / state.timed_seconds, 1) if state.timed_seconds else None,
        "peak_memory_bytes": meters.peak_memory(state.device),
        "best_val_loss": best,
        "best_step": state.best_step,
        "final_val_loss": known(state.val_loss),
        "bits_per_byte": None if best is None else val.bits_per_byte(best),
        **(
            {}
            if state.averages is None
            else {"final_ema_val_loss": known(state.ema_val_loss), "best_ema_val_loss": known(state.best_ema_val_loss)}
        ),
        **({"skipped_updates": state.skipped_updates} if state.number_format.scaler is not None else {}),
        **({"entries": state.entries} if isinstance(state.model, FittedModel) else {}),
    }
