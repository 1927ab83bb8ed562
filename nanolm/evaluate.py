"""`nanolm evaluate`: the exact loss of a run's checkpoint on a split."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from nanolm.compose import import_plugins, load_yaml
from nanolm.config import Config, Precision
from nanolm.data import corpus as corpora
from nanolm.data import tokenizers
from nanolm.data.stream import tokenize
from nanolm.data.tokenizers import Tokenizer
from nanolm.errors import CheckpointError, RunError, SettingsError, nearest
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training import checkpoint
from nanolm.training.precision import NumberFormat, choose_device
from nanolm.training.validation import exact_loss


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run's model, ready to use."""

    run: RunDirectory
    config: Config
    tokenizer: Tokenizer
    model: nn.Module
    step: int
    device: torch.device


def load_run(path: str, which: str = "best", device: str = "auto", plugins: list[str] | None = None) -> Loaded:
    """Opens a run directory. Nothing in it is executed: modules of the user's own must be named here again.

    Args:
        path: the run directory.
        which: "best" (lowest validation loss), "last", or a step.
        device: as trainer.device.
        plugins: modules that register what the run was made with.

    Raises:
        RunError: this is no run, or it has no checkpoint yet.
        CheckpointError: the checkpoint is damaged.
    """
    run = RunDirectory(path).require()
    import_plugins(plugins or [])
    config = load_yaml(run.config)
    tokenizer = tokenizers.from_file(run.tokenizer)
    found = _find(run, which)
    model = build(config, tokenizer.vocab_size)
    chosen = choose_device(device)
    return Loaded(run, config, tokenizer, checkpoint.weights_only(found, model, chosen), found.step, chosen)


def evaluate(loaded: Loaded, split: str = "val", stride: int | None = None) -> dict[str, Any]:
    """Scores a split.

    Args:
        loaded: the run.
        split: train or val.
        stride: tokens scored at a time, each behind context_length - stride tokens of context; None: context_length.

    Returns:
        loss (nats a token), bits_per_byte, tokens scored, and what they were scored with.

    Raises:
        SettingsError: no such split, or a stride that does not fit the context.
        RunError: the text is not the one that the run was trained with.
    """
    config = loaded.config
    context_length = config.size.context_length
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise SettingsError(
            f"--stride is {stride}", where="--stride", mend=f"from 1 to the context length, {context_length}"
        )
    corpus = corpora.load(config.dataset)
    if split not in corpus.splits:
        raise SettingsError(f"there is no split {split!r}", where="--split", mend=nearest(split, corpus.splits))
    trained_on = loaded.run.read_summary().get("corpus")
    if trained_on and trained_on != corpus.fingerprint:
        raise RunError(
            f"the text is not the one that the run was trained with: sha256 {corpus.fingerprint[:16]}..., "
            f"was {trained_on[:16]}...",
            where=f"dataset of {loaded.run.path}",
            mend="bring back the same text",
        )
    stream = tokenize(corpus, loaded.tokenizer, config)[split]
    loss = exact_loss(
        loaded.model,
        loaded.model,
        stream.tokens,
        context_length=context_length,
        stride=stride,
        vocab_size=loaded.tokenizer.vocab_size,
        device=loaded.device,
        number_format=NumberFormat(Precision.fp32, loaded.device),
    )
    return {
        "run": str(loaded.run.path),
        "step": loaded.step,
        "split": split,
        "stride": stride,
        "loss": loss,
        "bits_per_byte": stream.bits_per_byte(loss),
        "tokens": len(stream.tokens) - 1,
    }


def _find(run: RunDirectory, which: str) -> checkpoint.Checkpoint:
    if which not in ("best", "last") and not which.isdigit():
        raise SettingsError(f"--checkpoint is {which!r}", where="--checkpoint", mend="best, last, or a step")
    if which.isdigit():
        return checkpoint.at_step(run.checkpoints, int(which))
    last, damaged = checkpoint.newest(run.checkpoints)
    if last is None:
        raise RunError(
            "the run has no checkpoint yet",
            where=str(run.checkpoints),
            mend=f"wait for its first save (trainer.save_every), or go on with it: nanolm train resume={run.path}",
        )
    if which == "last":
        if damaged:
            raise damaged[0]
        return last
    best = int(last.load_state()["numbers"]["best_step"])
    if damaged and best != last.step:
        # A newer checkpoint that cannot be read may have been the best: say so instead of guessing.
        raise damaged[0]
    return checkpoint.at_step(run.checkpoints, best) if best else last


__all__ = ["CheckpointError", "Loaded", "evaluate", "load_run"]
