"""Evaluate a checkpoint: the exact loss on a split."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from typing import TypedDict

from nanolm import shell
from nanolm.compose import compose_command
from nanolm.config.checks import check
from nanolm.config.checks.dataset import check_dataset
from nanolm.config.dataset import DatasetConfig
from nanolm.config.mask import reads_documents
from nanolm.config.trainer import Precision
from nanolm.data import corpus as corpora
from nanolm.data.download import only_if_asked
from nanolm.data.tokens.cache import tokenize
from nanolm.errors import RunError, SettingsError, nearest, raise_all
from nanolm.inference.load import Loaded
from nanolm.runs.directory import RunDirectory
from nanolm.training.memory import translate_memory_errors
from nanolm.training.precision import NumberFormat
from nanolm.training.validation import exact_loss


class Evaluation(TypedDict):
    """The loss on a split: nats per token, and bits per byte, which compare only if `lossless`."""

    run: str
    step: int
    split: str
    stride: int
    loss: float
    bits_per_byte: float
    lossless: bool
    tokens: int


def evaluate(
    loaded: Loaded,
    split: str = "val",
    stride: int | None = None,
    may_download: bool = False,
    dataset: DatasetConfig | None = None,
) -> Evaluation:
    """Compute the loss on every token of a split.

    Args:
        split: train, val, or test if the dataset has one.
        stride: tokens scored per window; each has at least context_length - stride tokens of context. None is
            context_length.
        may_download: whether to download the text from the address in the run's settings if it is not in the cache.
        dataset: another text than the run's; what it names may be downloaded. None is the run's.

    Returns:
        loss (nats per token), bits_per_byte, lossless (whether bits_per_byte is comparable), the number of scored
        tokens, and run, step, split and stride.

    Raises:
        SettingsError: there is no such split, the stride is larger than the context, or an imported model has no text.
        RunError: the text has changed since the run was trained, or would have to be downloaded.
        DataError: the text cannot be read.
    """
    config = loaded.config
    context_length = config.size.context_length
    if stride is not None and config.trainer.sampling.in_rows:
        raise SettingsError(
            f"the run was trained on {config.trainer.sampling.name}, each of which is scored with its own context only",
            where="--stride",
            hint="leave out --stride",
        )
    stride = context_length if stride is None else stride
    if not 1 <= stride <= context_length:
        raise SettingsError(
            f"--stride is {stride}", where="--stride", hint=f"from 1 to the context length, {context_length}"
        )
    if dataset is None and loaded.run.read_summary().is_imported:
        raise SettingsError(
            "the model was imported, and has no text of its own",
            where=str(loaded.run.path),
            hint=f"name a text: {shell.join('nanolm', 'evaluate', str(loaded.run.path), 'dataset=tiny_shakespeare')}",
        )
    is_asked = may_download or dataset is not None
    with contextlib.nullcontext() if is_asked else only_if_asked(option="--download"):
        return _evaluate(loaded, split, stride, dataset)


def chosen_dataset(
    run: str | os.PathLike[str], overrides: Sequence[str], config_dir: str | None = None
) -> DatasetConfig | None:
    """Return the dataset that overrides choose, over that of a run; None if there are no overrides.

    Raises:
        SettingsError: the overrides have mistakes, or set something else.
    """
    if not overrides:
        return None
    command = compose_command(overrides, config_dir, saved=RunDirectory(run).require().config)
    if others := sorted(key for key in command.given if not key.startswith("dataset.")):
        raise SettingsError(
            f"evaluating changes the dataset only, and not {', '.join(others)}",
            where="the command line",
            hint="leave out the other settings",
        )
    raise_all(check(command.config, (check_dataset,)))
    return command.config.dataset


def _evaluate(loaded: Loaded, split: str, stride: int, dataset: DatasetConfig | None) -> Evaluation:
    config = loaded.config if dataset is None else dataclasses.replace(loaded.config, dataset=dataset)
    corpus = corpora.load(config.dataset)
    if split not in corpus.splits:
        raise SettingsError(f"there is no split {split!r}", where="--split", hint=nearest(split, corpus.splits))
    trained_on = loaded.run.read_summary().corpus if dataset is None else None
    if trained_on and trained_on != corpus.fingerprint:
        raise RunError(
            f"the text has changed since the run was trained: its SHA-256 is {corpus.fingerprint[:16]}... "
            f"instead of {trained_on[:16]}...",
            where=f"dataset of {loaded.run.path}",
            hint="restore the text that the run was trained on",
        )
    stream = tokenize(corpus, loaded.tokenizer, config)[split]
    with translate_memory_errors(config):
        loss = exact_loss(
            loaded.model,
            stream,
            context_length=config.size.context_length,
            stride=stride,
            vocab_size=loaded.tokenizer.vocab_size,
            device=loaded.device,
            number_format=NumberFormat(Precision.fp32, loaded.device),
            reads_documents=reads_documents(config),
        )
    return {
        "run": str(loaded.run.path),
        "step": loaded.step,
        "split": split,
        "stride": stride,
        "loss": loss,
        "bits_per_byte": stream.bits_per_byte(loss),
        "lossless": loaded.tokenizer.lossless,
        "tokens": stream.scored_tokens,
    }
