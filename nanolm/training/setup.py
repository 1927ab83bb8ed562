"""What the loop works with: the data and the model of a run, new or as its newest checkpoint has them, and its log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from nanolm.config.identity import identity
from nanolm.config.mask import reads_documents
from nanolm.config.run import Config
from nanolm.config.trainer import Parallel
from nanolm.data import corpus as corpora
from nanolm.data import tokenizers
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.errors import CheckpointError, DivergedError, RunError
from nanolm.model import backend_choice
from nanolm.model.build import FittedModel, build
from nanolm.runs import provenance
from nanolm.runs.directory import RunDirectory
from nanolm.runs.log import Log, NoLog
from nanolm.training import ema, meters, rng
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent, adapt_state
from nanolm.training.checkpoints.resume_checks import Continuation, check_run
from nanolm.training.checkpoints.saver import Saver
from nanolm.training.checkpoints.state import TrainState
from nanolm.training.determinism import set_determinism
from nanolm.training.distributed import parallel as distributed
from nanolm.training.distributed.ranks import Ranks
from nanolm.training.memory import require_memory
from nanolm.training.optimizers import build as optimizers
from nanolm.training.precision import NumberFormat, choose_device
from nanolm.training.step import Forward

DIVERGED_HINT = "a lower optimizer.lr, a longer scheduler.warmup_steps, or trainer.clip_norm=1.0"


@dataclasses.dataclass
class Setup:
    """The data and the model, ready to train.

    Attributes:
        about: what the manifest of a checkpoint says of the run.
        damaged: what is wrong with each checkpoint of the run that is newer than the one it goes on from.
        parent: where a fork begins; None of a run that has a checkpoint of its own.
        continuation: what else the run directory says of a run that goes on.
        flops_per_token: of a training step; None where there is no formula.
        peak_flops: of one device in a second; None where it is not known.
    """

    config: Config
    run: RunDirectory
    ranks: Ranks
    corpus: Corpus
    tokenizer: Tokenizer
    streams: dict[str, Stream]
    state: TrainState
    forward: Forward
    about: dict[str, Any]
    damaged: list[CheckpointError]
    parent: Parent | None
    continuation: Continuation
    flops_per_token: int | None
    peak_flops: float | None


@dataclasses.dataclass
class Session(Setup):
    """A setup whose training is written down.

    Attributes:
        log, saver: of the run.
        should_prune: asked after each evaluation with the step and the validation loss whether to give the run up.
    """

    log: Log | NoLog
    saver: Saver
    should_prune: Callable[[int, float], bool] | None


def prepare(config: Config, run: RunDirectory, ranks: Ranks, parent: Parent | None = None) -> Setup:
    """The data and the model of a run, as it begins or as its newest checkpoint has it; nothing is written in the run.

    Args:
        config: checked settings.
        run: empty, or the run to go on with.
        ranks: the processes that train together.
        parent: where the run begins as a fork, if it has no checkpoint of its own yet.

    Raises:
        NanolmError: the data, the device or the checkpoint is not as it must be.
    """
    settings = config.trainer
    device = ranks.run_on_all(lambda: choose_device(settings.device, ranks))
    set_determinism(settings.deterministic, device)
    backend_choice.require_device(settings.attention_backend, device)
    is_sharded = ranks.world_size > 1 and settings.parallel is Parallel.fsdp
    resumed, damaged = ranks.run_on_main(lambda: checkpoint.newest(run.checkpoints))
    before = None if resumed is None else resumed.manifest.get("precision")
    # FSDP computes in half precision by itself: autocast would keep copies of all gathered weights.
    number_format = NumberFormat(settings.precision, device, before, has_autocast=not is_sharded)
    if is_sharded:
        number_format.require_no_scale()
    continuation = ranks.run_on_main(lambda: check_run(config, run, resumed, damaged))
    parent = None if resumed else parent
    start = parent.checkpoint if parent else resumed
    corpus, tokenizer, streams = ranks.run_on_main_first(
        lambda: _prepare_text(config, run, resumed is not None, parent)
    )
    about: dict[str, Any] = {
        "identity": identity(config),
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizers.fingerprint(config.tokenizer.name, tokenizer),
        "precision": number_format.name,
        "versions": provenance.versions(),
    }
    if resumed is not None:
        _require_same(resumed, about)

    require_memory(config, tokenizer.vocab_size, device, is_sharded)
    model, forward = _build_model(config, tokenizer.vocab_size, parent or resumed, ranks, device, number_format)
    is_counted = isinstance(model, FittedModel)
    if settings.compile and not is_counted:
        forward = torch.compile(forward)
    optimizer = None if is_counted else optimizers.build(config.optimizer, model)
    averages = None if is_counted or settings.ema_decay is None else ema.init(model)
    state = TrainState(model, optimizer, number_format, device, ranks, averages)
    if start is None:
        rng.seed_rank(config.seed, 0, ranks.rank)
    else:
        saved_state = start.load_state()
        if averages is not None and (saved := start.load_averages()) is not None:
            state.load_averages(saved)
        if parent is not None and optimizer is not None:
            saved_state = adapt_state(saved_state, parent.config, config, optimizer)
        state.load_state_dict(saved_state, config.seed)
    return Setup(
        config=config,
        run=run,
        ranks=ranks,
        corpus=corpus,
        tokenizer=tokenizer,
        streams=streams,
        state=state,
        forward=forward,
        about=about,
        damaged=damaged,
        parent=parent,
        continuation=continuation,
        flops_per_token=meters.training_flops_per_token(config, tokenizer.vocab_size),
        peak_flops=meters.peak_flops(device, number_format.name, settings.peak_flops),
    )


def _build_model(
    config: Config,
    vocab_size: int,
    source: Parent | checkpoint.Checkpoint | None,
    ranks: Ranks,
    device: torch.device,
    number_format: NumberFormat,
) -> tuple[nn.Module, Forward]:
    """Build the model on its device, and what a training step calls in its place.

    Args:
        source: where the weights come from; None leaves them as they are initialized.
    """
    parallel = config.trainer.parallel

    def with_weights() -> nn.Module:
        model = build(config, vocab_size)
        if source is not None:
            source.load_weights(model)
        return model

    if ranks.world_size == 1 or parallel is not Parallel.fsdp:
        model = with_weights().to(device)
        is_counted = isinstance(model, FittedModel)
        return model, model if is_counted else distributed.parallelize(model, parallel, ranks, device)
    # Only rank 0 holds the whole model, in host memory, until every rank has its part on its device.
    whole = ranks.run_on_all(lambda: with_weights() if ranks.is_main else None)
    model = distributed.on_meta(lambda: build(config, vocab_size))
    forward = distributed.parallelize(model, parallel, ranks, device, number_format.dtype)
    distributed.fill(model, whole, ranks, device)
    return model, forward


def _prepare_text(
    config: Config, run: RunDirectory, goes_on: bool, parent: Parent | None
) -> tuple[Corpus, Tokenizer, dict[str, Stream]]:
    """The text, its tokenizer (that of the run it goes on with, or of the parent's same settings) and its tokens."""
    corpus = corpora.load(config.dataset)
    if goes_on:
        tokenizer = tokenizers.from_file(run.tokenizer)
    elif parent is not None and parent.config.tokenizer == config.tokenizer:
        tokenizer = tokenizers.from_file(parent.run.tokenizer)
    else:
        tokenizer = token_cache.fit_tokenizer(corpus, config)
    return corpus, tokenizer, token_cache.tokenize(corpus, tokenizer, config)


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
                hint="bring back the same text (dataset.path= may say where), or start a new run: with fork=true from "
                "these weights, without resume from none",
            )


def micro_batches(setup: Setup, step: int) -> tuple[Iterator[tuple[torch.Tensor, ...]], int]:
    """This rank's micro-batches of a step, on the device, and the number of scored targets of the whole batch."""
    settings, device, ranks = setup.config.trainer, setup.state.device, setup.ranks
    batch = draw(
        settings.sampling,
        setup.streams["train"],
        seed=setup.config.seed,
        step=step,
        batch_size=settings.batch_size,
        context_length=setup.config.size.context_length,
        rank=ranks.rank,
        world_size=ranks.world_size,
        with_documents=reads_documents(setup.config),
    )
    targets_BxT = batch.targets_BxT
    if settings.sampling.in_rows:
        n_scored = int(ranks.sum(int(np.count_nonzero(targets_BxT != IGNORE_INDEX))))
    else:
        n_scored = targets_BxT.size * ranks.world_size
    sides = (torch.from_numpy(side).to(device, non_blocking=True) for side in batch if side is not None)
    return zip(*(side.chunk(settings.gradient_accumulation) for side in sides), strict=True), n_scored


def set_lr(optimizer: torch.optim.Optimizer, lr_factor: float) -> None:
    """Gives every group of parameters its lr times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * lr_factor


def diverged(session: Session, loss: float, grad_norm: float, lr: float) -> DivergedError:
    """What to say when a loss or a gradient is not finite; the last save is waited for."""
    state = session.state
    session.saver.wait_and_report()
    try:
        last, _ = checkpoint.newest(session.run.checkpoints)
    except CheckpointError:
        last = None
    scale = "" if state.number_format.scaler is None else f", loss scale {state.number_format.scaler.get_scale():.3g}"
    return DivergedError(
        f"the run diverged at step {state.step + 1}: loss {loss}, gradient norm {grad_norm}, lr {lr:.3g}{scale}",
        where=f"{session.run.path}; last good checkpoint: {last.path.name if last else 'none yet'}",
        hint=f"{DIVERGED_HINT}; the weights were left as they were",
    )
