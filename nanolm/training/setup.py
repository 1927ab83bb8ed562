"""Preparation of a run: its data, its model and its state, new or from a checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nanolm.config.batch_schedule import LONG_RUN
from nanolm.config.budget import MAX_MINUTES, budget_of
from nanolm.config.checks.lora import check_start
from nanolm.config.checks.scheduler import check_phases
from nanolm.config.identity import identity
from nanolm.config.lr_scaling import resolve_optimizer
from nanolm.config.model import NgramConfig
from nanolm.config.run import Config
from nanolm.config.trainer import Parallel
from nanolm.data import corpus as corpora
from nanolm.data import tokenizers
from nanolm.data.corpus import Corpus
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Stream
from nanolm.errors import CheckpointError, RunError, raise_all
from nanolm.model import backend_choice, budget, count
from nanolm.model.build import FittedModel, build
from nanolm.model.transformer import Transformer
from nanolm.runs import provenance
from nanolm.runs.directory import RunDirectory
from nanolm.training import compilation, ema, meters, rng
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.base import Base, require_base
from nanolm.training.checkpoints.fit import require_fit
from nanolm.training.checkpoints.fork import Parent, adapt_state
from nanolm.training.checkpoints.manifest import max_steps_of
from nanolm.training.checkpoints.resume_checks import ResumeInfo, check_run, parent_notes
from nanolm.training.checkpoints.state import TrainState, read_state
from nanolm.training.determinism import set_determinism
from nanolm.training.distributed import parallel as distributed
from nanolm.training.distributed.ranks import Ranks
from nanolm.training.memory import require_memory
from nanolm.training.optimizers import build as optimizers
from nanolm.training.precision import NumberFormat, choose_device, resolve
from nanolm.training.step import Forward, LossFn, loss_function

# A number of steps that is not known before the speed is measured.
UNKNOWN = 0


@dataclasses.dataclass
class Setup:
    """The data and the model of a run, ready to train.

    Attributes:
        config: the settings, with the number of steps that the budget has been turned into.
        has_steps: whether that is known; else config has any, until `minutes.fix_steps` has measured the speed.
        streams: tokens by split.
        forward: what a training step calls in place of the model (its distributed form).
        loss_fn: computes the loss of a micro-batch from `forward`; compiled with the model if configured.
        evaluation_loss: the same for evaluations; None if it is not compiled.
        about: facts for the manifests of checkpoints and for the summary.
        damaged: an error for each damaged checkpoint after the one that the run resumes from.
        parent: the checkpoint that a fork starts from; None for a run that has a checkpoint.
        base: the frozen weights to write to a new run with low-rank adapters.
        resume_info: results of the checks of the run directory.
        flops_per_token: of a training step, the mean over the batches of the run; None without a formula.
        flops_by_context: the same for each context length of the batches; empty without a formula.
        peak_flops: FLOPs per second of one device; None if unknown.
    """

    config: Config
    has_steps: bool
    run: RunDirectory
    ranks: Ranks
    corpus: Corpus
    tokenizer: Tokenizer
    streams: dict[str, Stream]
    state: TrainState
    forward: Forward
    loss_fn: LossFn
    evaluation_loss: LossFn | None
    about: dict[str, Any]
    damaged: list[CheckpointError]
    parent: Parent | None
    base: Base | None
    resume_info: ResumeInfo
    # On rank 0: as of `check_run`.
    hashes: dict[str, hashlib._Hash]
    flops_per_token: int | None
    flops_by_context: dict[int, int]
    peak_flops: float | None

    @property
    def is_compiled(self) -> bool:
        """Whether the model is compiled with its loss."""
        return self.evaluation_loss is not None


def prepare(config: Config, run: RunDirectory, ranks: Ranks, parent: Parent | None = None) -> Setup:
    """Prepare a run to start, or to resume from its newest intact checkpoint. Nothing is written to the run.

    Args:
        run: an empty run directory, or the run to resume.
        parent: the checkpoint to fork from, if the run has no checkpoint yet.

    Raises:
        NanolmError: the data, the device or the checkpoint cannot be used.
    """
    settings = config.trainer
    device = ranks.run_on_all(lambda: choose_device(settings.device, ranks))
    set_determinism(settings.deterministic, device)
    backend_choice.require_device(settings.attention_backend, device)
    is_sharded = ranks.world_size > 1 and settings.parallel is Parallel.fsdp
    resumed, damaged = ranks.run_on_main(lambda: checkpoint.newest(run.checkpoints))
    before = None if resumed is None else resumed.manifest.get("precision")
    # Decided once, since processes could measure differently.
    precision = ranks.run_on_main(lambda: resolve(settings.precision, device, before))
    number_format = NumberFormat(precision, device, is_sharded=is_sharded)
    hashes: dict[str, hashlib._Hash] = {}
    resume_info = ranks.run_on_main(lambda: check_run(config, run, resumed, damaged, hashes))
    parent = None if resumed else parent
    if parent is not None:
        resume_info.notes.extend(ranks.run_on_main(lambda: parent_notes(parent)))
    start = parent.checkpoint if parent else resumed
    if start is None:
        raise_all(list(check_start(config)))
    if start is not None and start.base is not None:
        # Before the text is read.
        sha256 = start.base
        ranks.run_on_main(lambda: require_base(start.run, sha256))
    corpus, tokenizer, streams = ranks.run_on_main_first(
        lambda: _prepare_text(config, run, resumed is not None, parent)
    )
    max_steps = steps_in_minutes(config, run, resumed)
    has_steps = max_steps != UNKNOWN
    config = _in_steps(config, streams["train"], tokenizer.vocab_size, parent, max_steps)
    about: dict[str, Any] = {
        "identity": identity(config),
        "corpus": corpus.fingerprint,
        "tokenizer": tokenizers.fingerprint(config.tokenizer.name, tokenizer),
        "precision": number_format.name,
        "versions": provenance.versions(),
    }
    if resumed is not None:
        _require_same(resumed, about)

    if parent is not None:
        parent.require_fit(config, tokenizer.vocab_size)
    elif resumed is not None:
        require_fit(resumed, config, tokenizer.vocab_size)
    require_memory(config, tokenizer.vocab_size, device, is_sharded)
    load_weights = None if resumed is None else resumed.load_weights
    base = None
    if parent is not None:
        load_weights = functools.partial(parent.load_weights, config=config, vocab_size=tokenizer.vocab_size)
        base = ranks.run_on_all(lambda: parent.base_of(config, tokenizer.vocab_size))
    model, forward = build_model(config, tokenizer.vocab_size, load_weights, ranks, device, number_format)
    fingerprint = base.sha256 if base else resumed.base if resumed else None
    if fingerprint is not None:
        about["base"] = fingerprint
    is_fitted = isinstance(model, FittedModel)
    loss_fn, evaluation_loss, is_compiled = loss_function(model), None, False
    if not is_fitted:
        is_compiled, note = ranks.run_on_all(
            lambda: compilation.choose(config, tokenizer.vocab_size, device, ranks.world_size)
        )
        resume_info.notes.extend([note] if note else [])
    if is_compiled:
        loss_fn, evaluation_loss = compilation.compiled_losses(loss_fn, config)
    optimizer = None if is_fitted else optimizers.build(resolve_optimizer(config), model)
    averages = ema.init(model) if settings.is_averaged and not is_fitted else None
    state = TrainState(model, optimizer, number_format, device, ranks, averages)
    if start is None:
        rng.seed_rank(config.seed, 0, ranks.rank)
    else:
        saved_state = read_state(start)
        has_same_parameters = parent is None or parent.checkpoint.base is None is base or parent.keeps_adapters(config)
        if averages is not None and has_same_parameters and (saved := start.load_averages(model)) is not None:
            state.load_averages(saved)
        if parent is not None and optimizer is not None:
            saved_state = adapt_state(saved_state, parent.config, config, optimizer, has_same_parameters)
        state.load_state_dict(saved_state, config.seed, str(start.path / checkpoint.STRUCTURE))
    if resumed is None and isinstance(model, Transformer) and model.ngram_mix is not None:
        # The counts are those of the run's own text, of which a fork may have another. They are tokens seen.
        state.entries = model.ngram_mix.count(streams["train"].tokens)
        state.tokens += len(streams["train"].tokens)
    return Setup(
        config=config,
        has_steps=has_steps,
        run=run,
        ranks=ranks,
        corpus=corpus,
        tokenizer=tokenizer,
        streams=streams,
        state=state,
        forward=forward,
        loss_fn=loss_fn,
        evaluation_loss=evaluation_loss,
        about=about,
        damaged=damaged,
        parent=parent,
        base=base,
        resume_info=resume_info,
        hashes=hashes,
        flops_per_token=count.mean_flops_per_token(config, tokenizer.vocab_size),
        flops_by_context=count.flops_by_context(config, tokenizer.vocab_size),
        peak_flops=meters.peak_flops(device, number_format.name, settings.peak_flops),
    )


def steps_in_minutes(config: Config, run: RunDirectory, resumed: checkpoint.Checkpoint | None) -> int | None:
    """Return the steps that an earlier session has fixed for trainer.max_minutes.

    Returns:
        UNKNOWN if they are to be measured; None for another budget.
    """
    minutes = budget_of(config.trainer)
    if minutes.name != MAX_MINUTES or config.model.name == NgramConfig.name:
        return None
    if resumed is not None:
        is_same = resumed.manifest["settings"].get("trainer.max_minutes") == minutes.value
        return max_steps_of(resumed.manifest) if is_same else UNKNOWN
    summary = run.read_summary()
    return summary.max_steps if summary.max_steps and summary.budget == minutes.as_dict() else UNKNOWN


def _in_steps(
    config: Config, train: Stream, vocab_size: int, parent: Parent | None, max_steps: int | None = None
) -> Config:
    """Turn the budget of a run into steps, and check what depends on their number.

    Args:
        max_steps: fixed by an earlier session; UNKNOWN: any number, without a check.
    """
    if budget_of(config.trainer).in_steps:
        return config
    if max_steps == UNKNOWN:
        return budget.with_steps(config, LONG_RUN)
    config = budget.in_steps(config, train, vocab_size) if max_steps is None else budget.with_steps(config, max_steps)
    raise_all(list(check_phases(config)))
    if parent is not None:
        parent.require_steps_left(config)
    return config


def build_model(
    config: Config,
    vocab_size: int,
    load_weights: Callable[[nn.Module], None] | None,
    ranks: Ranks,
    device: torch.device,
    number_format: NumberFormat,
    is_trained: bool = True,
) -> tuple[nn.Module, Forward]:
    """Build the model on its device, and the module that a training step calls instead. All ranks must call it.

    Args:
        load_weights: loads the weights of a checkpoint; None keeps the initial ones.
        number_format: whose dtype a sharded model computes in.
        is_trained: whether gradients are averaged over the ranks; a model that is only evaluated needs no buffers for
            them.
    """
    parallel = config.trainer.parallel

    def with_weights() -> nn.Module:
        model = build(config, vocab_size)
        if load_weights is not None:
            load_weights(model)
        return model

    if ranks.world_size == 1 or parallel is not Parallel.fsdp:
        model = with_weights().to(device)
        has_gradients = is_trained and not isinstance(model, FittedModel)
        return model, model if not has_gradients else distributed.parallelize(model, parallel, ranks, device)
    # Only rank 0 holds the full model, in host memory, until every rank has its shards on its device.
    full = ranks.run_on_all(lambda: with_weights() if ranks.is_main else None)
    model = distributed.on_meta(lambda: build(config, vocab_size))
    forward = distributed.parallelize(model, parallel, ranks, device, number_format.dtype)
    distributed.fill(model, full, ranks, device)
    return model, forward


def _prepare_text(
    config: Config, run: RunDirectory, is_resumed: bool, parent: Parent | None
) -> tuple[Corpus, Tokenizer, dict[str, Stream]]:
    """Load the text, its tokenizer and its tokens.

    The tokenizer is that of the resumed run, or of the parent if its settings are the same, or fitted to the text.
    """
    corpus = corpora.load(config.dataset)
    if is_resumed:
        tokenizer = tokenizers.from_file(run.tokenizer)
    elif parent is not None and parent.config.tokenizer == config.tokenizer:
        tokenizer = tokenizers.from_file(parent.run.tokenizer)
    else:
        tokenizer = token_cache.fit_tokenizer(corpus, config)
    return corpus, tokenizer, token_cache.tokenize(corpus, tokenizer, config)


def _require_same(resumed: checkpoint.Checkpoint, about: dict[str, Any]) -> None:
    """Refuse a text or a tokenizer other than those of the checkpoint.

    Raises:
        RunError: names both fingerprints.
    """
    for what in ("corpus", "tokenizer"):
        saved, here = resumed.manifest.get(what), about[what]
        if saved != here:
            raise RunError(
                f"the {what} is not the one that the run was trained with: "
                f"SHA-256 {here[:16]}..., was {str(saved)[:16]}...",
                where=str(resumed.path),
                hint="restore the same text (dataset.path= sets its path), or start a new run: from these weights with "
                "fork=true, or from scratch without resume",
            )
