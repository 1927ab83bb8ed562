"""A run from its settings to its summary. `train` prepares, `loop` is the training itself, on one page.

A model that is counted has `count` in place of the loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from nanolm.config import Config, Parallel, flat, identity, reads_documents
from nanolm.config_file import save_yaml
from nanolm.data import compressors, token_cache, tokenizers
from nanolm.data import corpus as corpora
from nanolm.data.batches import IGNORED, draw
from nanolm.data.corpus import Corpus
from nanolm.data.stream import Stream
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import CheckpointError, DiskError, DivergedError, NanolmError, RunError
from nanolm.files import write_durably
from nanolm.model import attention_paths, masks
from nanolm.model.build import Counted, build, count_parameters
from nanolm.model.references import bigram_loss, unigram_loss
from nanolm.model.sampling import sample
from nanolm.runs import provenance
from nanolm.runs.console import LOSSY
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log, NoLog
from nanolm.runs.loggers import About, open_logger
from nanolm.training import checkpoint, distributed, optimizers, rng, schedules
from nanolm.training.allocator import keep_freed_memory
from nanolm.training.optimizers import weights_that_count
from nanolm.training.precision import NumberFormat, choose_device
from nanolm.training.ranks import ALONE, Ranks, explained
from nanolm.training.saver import Saver
from nanolm.training.state import TrainState
from nanolm.training.step import Forward, update
from nanolm.training.stop import StopRequest
from nanolm.training.validation import split_loss

# The reference lines are counted anew at every start, at some ten million tokens a second.
COUNTABLE_TOKENS = 2**27


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended: its summary, its exit status, and the last sample of its writing."""

    summary: dict[str, Any]
    exit_status: int
    sample: str


@dataclasses.dataclass
class Setup:
    """What the loop works with."""

    config: Config
    run: RunDirectory
    tokenizer: Tokenizer
    streams: dict[str, Stream]
    state: TrainState
    forward: Forward
    log: Log | NoLog
    saver: Saver
    about: dict[str, Any]
    ranks: Ranks
    is_hopeless: Callable[[int, float], bool] | None


def train(
    config: Config,
    run: RunDirectory,
    *,
    choices: dict[str, str] | None = None,
    changes: list[str] | None = None,
    show_bar: bool | None = None,
    bar_file: IO[str] | None = None,
    quiet: bool = False,
    ranks: Ranks = ALONE,
    is_hopeless: Callable[[int, float], bool] | None = None,
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
        is_hopeless: asked after each evaluation with the step and the validation loss; True ends the run as pruned,
            behind a checkpoint.
        group: the sweep that the run is a job of; None: none, or that of the run that goes on.

    Raises:
        NanolmError: the data, the device or the checkpoint is not as it must be; nothing was written by then.
        DivergedError: the loss or its gradient is not finite.
        RankError: another rank has ended or does not answer.
    """
    began = time.perf_counter()
    keep_freed_memory()
    device = ranks.together(lambda: choose_device(config.trainer.device, ranks))
    attention_paths.require_device(config.trainer.attention_path, device)
    is_sharded = ranks.n > 1 and config.trainer.parallel is Parallel.fsdp
    number_format = NumberFormat(config.trainer.precision, device)
    if is_sharded:
        number_format.require_no_scale()
    resumed, damaged = ranks.from_main(lambda: checkpoint.newest(run.checkpoints))
    corpus, tokenizer, streams = ranks.main_first(lambda: _prepare_text(config, run, resumed is not None))
    about: dict[str, Any] = {
        "identity": identity(config),
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizers.fingerprint(config.tokenizer.name, tokenizer),
        "versions": provenance.versions(),
    }
    if resumed is not None:
        _require_same(resumed, about)

    model = build(config, tokenizer.vocab_size).to(device)
    is_counted = isinstance(model, Counted)
    if resumed is not None:
        resumed.load_weights(model)
    frame = distributed.frame_of(model) if is_sharded else None
    forward = model if is_counted else distributed.share(model, config.trainer.parallel, ranks, device)
    optimizer = None if is_counted else optimizers.build(config.optimizer, model)
    state = TrainState(model, optimizer, number_format, device, ranks, frame)
    summary = {
        "status": "running",
        "choices": choices or {},
        "device": str(device),
        "precision": state.number_format.name,
        "ranks": ranks.n,
        "seed": config.seed,
        "parameters": count_parameters(model),
        "vocab_size": tokenizer.vocab_size,
        "lossless": tokenizer.lossless,
        "sees_future": bool(masks.leaks(config)),
        "train_tokens": len(streams["train"].tokens),
        "val_tokens": len(streams["val"].tokens),
        "val_scored_tokens": streams["val"].scored_tokens,
        "reference_losses": ranks.from_main(lambda: _reference_losses(streams, tokenizer.vocab_size)),
        "reference_bits_per_byte": ranks.from_main(lambda: compressors.validation_bits_per_byte(corpus)),
        **about,
        "git": provenance.git(Path.cwd()),
    }
    before = run.read_summary()
    for name in ("wandb_id", "wandb_mode"):
        summary[name] = before.get(name)
    summary["group"] = group or before.get("group")
    changes = [*(changes or []), *_change_of_ranks(before, ranks)]
    if ranks.is_main:
        write_durably(run.tokenizer, tokenizers.to_text(config.tokenizer.name, tokenizer).encode())
        run.write_summary({**before, **summary})
        write_durably(run.config, save_yaml(config).encode())  # the mark that a run is here: last

    passed_over: list[str] = []
    if resumed is None:
        rng.seed_rank(config.seed, 0, ranks.rank)
    else:
        state.load_tree(resumed.load_state(), config.seed)
        aside = ranks.from_main(lambda: checkpoint.set_aside(run.checkpoints, resumed.step))
        passed_over = [f"{error.found}; kept as {path.name}" for error, path in zip(damaged, aside, strict=True)]
    with contextlib.closing(Log(run, state.lengths, show_bar, bar_file, quiet) if ranks.is_main else NoLog()) as log:
        if config.trainer.compile and not is_counted:
            forward = torch.compile(forward)
        saver = Saver(run.checkpoints, config.trainer, log.note)
        setup = Setup(config, run, tokenizer, streams, state, forward, log, saver, about, ranks, is_hopeless)
        _announce(setup, summary, passed_over, changes)
        if ranks.is_main:
            log.logger = open_logger(config.logger, run, About(flat(config), summary), log.say)
            summary |= log.logger.about()
            run.write_summary({**before, **summary})
        return _train(setup, summary, began)


def _prepare_text(config: Config, run: RunDirectory, goes_on: bool) -> tuple[Corpus, Tokenizer, dict[str, Stream]]:
    """The text, its tokenizer (of a run that goes on its own) and its tokens by split."""
    corpus = corpora.load(config.dataset)
    tokenizer = tokenizers.from_file(run.tokenizer) if goes_on and run.exists() else token_cache.fit(corpus, config)
    return corpus, tokenizer, token_cache.tokenize(corpus, tokenizer, config)


def _change_of_ranks(before: dict[str, Any], ranks: Ranks) -> list[str]:
    """What the number of ranks was, if the run had another one."""
    had = before.get("ranks", ranks.n)
    return [] if had == ranks.n else [f"ranks: {had} -> {ranks.n}"]


def _train(setup: Setup, summary: dict[str, Any], began: float) -> Outcome:
    """Runs the loop, or counts, and writes how it ended whatever happens in it."""
    stop = StopRequest()
    status = "failed"
    text = ""
    is_counted = isinstance(setup.state.model, Counted)
    try:
        with stop, explained(setup.run.path), setup.saver:
            text = count(setup, began) if is_counted else loop(setup, stop, began)
        is_done = is_counted or setup.state.step >= setup.config.trainer.max_steps
        status = "completed" if is_done else "interrupted" if stop.signal else "pruned"
    except DivergedError:
        status = "diverged"
        raise
    except OSError as error:
        summary["error"] = str(error)
        raise DiskError(
            f"the run cannot be written: {error.strerror or error}",
            where=str(error.filename or setup.run.path),
            mend=f"make room, then go on from the last good checkpoint: nanolm train resume={setup.run.path}",
        ) from error
    except Exception as error:
        summary["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        summary |= {"status": status, **_results(setup.state, setup.streams["val"])}
        if setup.ranks.is_main:
            with contextlib.suppress(OSError):
                setup.run.write_summary(summary)
        setup.log.logger.close(summary)
    return Outcome(summary, stop.exit_status if stop.signal else 0, text)


def loop(setup: Setup, stop: StopRequest, began: float) -> str:
    """Steps until trainer.max_steps or until it is told to stop; returns the last sample.

    Batches and the learning rate are functions of the step, so that going on from a checkpoint is no special case.
    """
    config, state, log = setup.config, setup.state, setup.log
    settings, optimizer = config.trainer, setup.state.optimizer
    assert optimizer is not None, "a model that is counted has no steps"
    began -= state.seconds
    text = ""
    is_better = is_stopping = False
    log.start_bar(settings.max_steps, state.step)
    pace = Pace()
    while state.step < settings.max_steps and not is_stopping:
        lr_factor = schedules.factor(state.step, settings.max_steps, config.scheduler, state.plateau)
        _set_lr(optimizer, lr_factor)
        parts, n_scored = _parts(setup, state.step)
        loss, grad_norm = update(
            setup.forward, optimizer, parts, state.number_format, settings.clip_norm, settings.clip_value, setup.ranks
        )
        if not math.isfinite(loss) or (state.number_format.scaler is None and not math.isfinite(grad_norm)):
            raise _diverged(setup, loss, grad_norm, config.optimizer.lr * lr_factor)

        state.step += 1
        state.tokens += n_scored
        state.loss_sum += loss
        state.loss_steps += 1
        pace.tokens += n_scored
        log.advance()
        is_last = state.step == settings.max_steps

        if state.step % settings.log_every == 0 or is_last:
            state.seconds = time.perf_counter() - began
            log.row(
                {
                    "step": state.step,
                    "split": "train",
                    "loss": state.loss_sum / state.loss_steps,
                    "lr": config.optimizer.lr * lr_factor,
                    "grad_norm": grad_norm,
                    "tokens": state.tokens,
                    "seconds": round(state.seconds, 3),
                    "tokens_per_second": round(pace.tokens_per_second(), 1),
                }
            )
            state.loss_sum, state.loss_steps = 0.0, 0

        if state.step % settings.eval_every == 0 or is_last:
            with pace.paused(), weights_that_count(optimizer):
                is_better, text = _evaluate(setup, began)
            is_stopping = _is_pruned(setup)

        is_stopping = stop.is_asked(setup.ranks) or is_stopping
        if _is_save_due(setup) or is_last or is_better or is_stopping:
            with pace.paused(), weights_that_count(optimizer):
                state.seconds = time.perf_counter() - began
                _save(setup)
            is_better = False
    return text


def count(setup: Setup, began: float) -> str:
    """Fits a counted model in one pass, which is its one step; returns the sample.

    Both losses are exact. The optimizer, the scheduler, and what the trainer says of steps and batches mean nothing
    here. Nothing is saved before the end: a run that is killed counts again.
    """
    state, log = setup.state, setup.log
    if state.step:
        return ""
    assert isinstance(state.model, Counted), "a model that is trained has steps"
    log.start_bar(1, 0)
    pace = Pace()
    tokens = setup.streams["train"].tokens
    state.entries = state.model.fit(tokens)
    pace.tokens = state.tokens = len(tokens)
    tokens_per_second = pace.tokens_per_second()
    state.step = 1
    log.advance()
    loss = _exact_loss(setup, "train")
    state.seconds = time.perf_counter() - began
    log.row(
        {
            "step": state.step,
            "split": "train",
            "loss": loss,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            "tokens_per_second": round(tokens_per_second, 1),
        }
    )
    _, text = _evaluate(setup, began)
    state.seconds = time.perf_counter() - began
    _save(setup)
    return text


class Pace:
    """Training speed, without the time that evaluating and saving take."""

    def __init__(self) -> None:
        self.tokens = 0
        self._since = time.perf_counter()

    def tokens_per_second(self) -> float:
        """Since it was last asked."""
        now = time.perf_counter()
        speed = self.tokens / max(now - self._since, 1e-9)
        self.tokens, self._since = 0, now
        return speed

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began


def _parts(setup: Setup, step: int) -> tuple[Iterator[tuple[torch.Tensor, ...]], int]:
    """This rank's share of a step's batch in `accumulate` parts, on the device, and the batch's scored targets."""
    settings, device, ranks = setup.config.trainer, setup.state.device, setup.ranks
    batch = draw(
        settings.batches,
        setup.streams["train"],
        seed=setup.config.seed,
        step=step,
        batch_size=settings.batch_size,
        context_length=setup.config.size.context_length,
        rank=ranks.rank,
        n_ranks=ranks.n,
        with_documents=reads_documents(setup.config),
    )
    targets_BxT = batch.targets_BxT
    if settings.batches.in_rows:
        n_scored = int(ranks.sum(int(np.count_nonzero(targets_BxT != IGNORED))))
    else:
        n_scored = targets_BxT.size * ranks.n
    sides = (torch.from_numpy(side).to(device, non_blocking=True) for side in batch if side is not None)
    return zip(*(side.chunk(settings.accumulate) for side in sides), strict=True), n_scored


def _set_lr(optimizer: torch.optim.Optimizer, lr_factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * lr_factor


def _evaluate(setup: Setup, began: float) -> tuple[bool, str]:
    """Scores the validation split exactly and writes a sample; returns whether it is the best yet, and the sample."""
    config, state, log = setup.config, setup.state, setup.log
    state.val_loss = _exact_loss(setup, "val")
    if not math.isfinite(state.val_loss):
        raise _diverged(setup, state.val_loss, math.nan, math.nan)
    state.plateau = schedules.after_evaluation(state.plateau, state.val_loss, config.scheduler)
    is_best = state.val_loss < state.best_val_loss
    if is_best:
        state.best_val_loss, state.best_step = state.val_loss, state.step
    text = ""
    if config.trainer.sample_tokens:
        text = _write_sample(setup)
        log.sample(state.step, text)
    state.seconds = time.perf_counter() - began
    bits_per_byte = setup.streams["val"].bits_per_byte(state.val_loss)
    log.row(
        {
            "step": state.step,
            "split": "val",
            "loss": state.val_loss,
            "bits_per_byte": bits_per_byte,
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
        }
    )
    log.say(
        f"step {state.step:>6}  val loss {state.val_loss:.4f}  {bits_per_byte:.4f} bits per byte"
        + ("  (best so far)" if is_best else "")
    )
    return is_best, text


def _is_pruned(setup: Setup) -> bool:
    """Whether the one who asked for this run gives it up for the loss that was just measured."""
    if setup.is_hopeless is None:
        return False
    is_hopeless, state = setup.is_hopeless, setup.state
    return setup.ranks.from_main(lambda: is_hopeless(state.step, state.val_loss))


def _exact_loss(setup: Setup, split: str) -> float:
    """Mean nats a token of a split, each token behind what training shows it."""
    context_length = setup.config.size.context_length
    return split_loss(
        setup.state.model,
        setup.state.model,
        setup.streams[split],
        context_length=context_length,
        stride=context_length,
        vocab_size=setup.tokenizer.vocab_size,
        device=setup.state.device,
        number_format=setup.state.number_format,
        reads_documents=reads_documents(setup.config),
        ranks=setup.ranks,
    )


def _write_sample(setup: Setup) -> str:
    """The model's continuation of a line end, or of the validation text's first token where there is none."""
    config, state, tokenizer = setup.config, setup.state, setup.tokenizer
    try:
        prompt = tokenizer.encode("\n")
    except NanolmError:
        prompt = setup.streams["val"].tokens[:1]
    if not len(prompt):  # a tokenizer that drops line ends
        prompt = setup.streams["val"].tokens[:1]
    tokens = sample(
        state.model,
        torch.from_numpy(prompt.astype(np.int64)).to(state.device),
        config.trainer.sample_tokens,
        context_length=config.size.context_length,
        seed=config.seed,
    )
    return tokenizer.decode(tokens.tolist())


def _is_save_due(setup: Setup) -> bool:
    """Whether a checkpoint falls on this step; by rank 0's clock, where the time decides."""
    due = functools.partial(setup.saver.is_due, setup.state.step)
    return due() if setup.config.trainer.save_minutes is None else setup.ranks.from_main(due)


def _save(setup: Setup) -> None:
    """Saves a checkpoint; when it reads back, those go that need not stay."""
    state = setup.state
    state.lengths = setup.log.lengths()
    about = {"val_loss": state.val_loss if math.isfinite(state.val_loss) else None, **setup.about}
    model, tree = state.whole_model(), state.to_tree()
    setup.ranks.from_main(lambda: setup.saver.save(state.step, model, tree, about, state.best_step))


def _require_same(resumed: checkpoint.Checkpoint, about: dict[str, Any]) -> None:
    """Refuses a text or a tokenizer that is not the one the checkpoint was trained with.

    Raises:
        RunError: with both fingerprints.
    """
    for what in ("corpus", "tokenizer"):
        saved, here = resumed.manifest.get(what), about[what]
        if saved != here:
            raise RunError(
                f"the {what} is not the one that the run was trained with: "
                f"sha256 {here[:16]}..., was {str(saved)[:16]}...",
                where=str(resumed.path),
                mend="bring back the same text (dataset.path= may say where), or start a new run without resume",
            )


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
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else None,
        "best_val_loss": best,
        "best_step": state.best_step,
        "final_val_loss": known(state.val_loss),
        "bits_per_byte": None if best is None else val.bits_per_byte(best),
        **({"entries": state.entries} if isinstance(state.model, Counted) else {}),
    }


def _diverged(setup: Setup, loss: float, grad_norm: float, lr: float) -> DivergedError:
    state = setup.state
    setup.saver.settle()
    try:
        last, _ = checkpoint.newest(setup.run.checkpoints)
    except CheckpointError:
        last = None
    return DivergedError(
        f"the run diverged at step {state.step + 1}: loss {loss}, gradient norm {grad_norm}, lr {lr:.3g}",
        where=f"{setup.run.path}; last good checkpoint: {last.path.name if last else 'none yet'}",
        mend="a lower optimizer.lr, a longer scheduler.warmup_steps, or trainer.clip_norm=1.0; "
        "the weights were left as they were",
    )


def _announce(setup: Setup, summary: dict[str, Any], passed_over: list[str], changes: list[str]) -> None:
    """The first lines that people read."""
    config, say = setup.config, setup.log.say
    for problem in passed_over:
        say(f"passed over a damaged checkpoint: {problem}")
    chosen = summary["choices"]
    parts = [chosen.get(group, getattr(getattr(config, group), "name", "")) for group in ("model", "size", "dataset")]
    amount = "a table to count" if isinstance(setup.state.model, Counted) else f"{summary['parameters']:,} parameters"
    say(
        f"{' '.join(part for part in parts if part)}: {amount}, "
        f"{summary['train_tokens']:,} + {summary['val_tokens']:,} tokens of {summary['vocab_size']:,} kinds, "
        f"on {summary['device']} in {summary['precision']}"
        + (f", {setup.ranks.n} ranks by {config.trainer.parallel.name}" if setup.ranks.n > 1 else "")
    )
    attention = attention_paths.in_words(config)
    if attention is not None:
        say(attention)
    if not summary["lossless"]:
        say(f"{LOSSY}: bits per byte are counted on the text as it was")
    if setup.state.optimizer is not None and (groups := optimizers.in_words(config.optimizer, setup.state.optimizer)):
        say(groups)
    for leak in masks.leaks(config):
        say(leak)
    if reads_documents(config) and setup.streams["train"].n_documents == 1:
        say("the train split is one document: mask.within_documents hides nothing of it")
    if setup.state.step:
        say(f"goes on from step {setup.state.step}" + (f" with {'; '.join(changes)}" if changes else ""))
    say(f"run directory {setup.run.path}")
