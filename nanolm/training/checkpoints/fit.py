"""Compare the header of a checkpoint's weights with the settings of a run, before its model is built."""

from __future__ import annotations

import contextlib

import torch

from nanolm.config.run import Config
from nanolm.errors import CheckpointError, SettingsError
from nanolm.machine import host_memory
from nanolm.model import count, memory_estimate
from nanolm.model.build import FittedModel, build
from nanolm.model.ngram_mix import TABLES
from nanolm.model.shapes import has_formula
from nanolm.training.checkpoints.checkpoint import Checkpoint
from nanolm.training.checkpoints.manifest import WEIGHTS
from nanolm.wording import format_bytes


def require_fit(found: Checkpoint, config: Config, vocab_size: int) -> None:
    """Refuse a checkpoint of a model of another size, and a model that this machine cannot hold.

    Names, shapes and dtypes are compared by `Checkpoint.load_weights`. Here the number of parameters proves that
    building the model takes no more memory than the files of its weights have bytes.

    Args:
        found: a verified checkpoint.
        config: settings whose values are within their bounds.
        vocab_size: of the tokenizer.

    Raises:
        CheckpointError: the weights have another number of parameters.
        SettingsError: this machine has less memory than the model needs for one sequence.
    """
    stored = sum(tensor.numel() for name, tensor in found.weights().items() if name not in TABLES)
    expected = _expected_parameters(config, vocab_size)
    if expected not in (None, stored):
        sizes = [f"size.{name}={value}" for name, value in vars(config.size).items() if value is not None]
        raise CheckpointError(
            f"the weights have {stored:,} parameters, and a model of these settings has {expected:,} "
            f"(model.name={config.model.name}, vocab size {vocab_size:,}, {', '.join(sizes)})",
            where=str(found.path / WEIGHTS),
            hint="restore config.yaml and tokenizer.json from a copy of the run",
        )
    n_bytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in found.weights().values())
    needed = n_bytes + memory_estimate.inference_memory(config, vocab_size)
    memory = host_memory()
    if memory is not None and needed > memory:
        raise SettingsError(
            f"the model needs at least {format_bytes(needed)} of memory for one sequence, and this machine has "
            f"{format_bytes(memory)}",
            where=f"size.context_length={config.size.context_length}, vocab size {vocab_size:,}, {found.path}",
            hint="use a machine with more memory; if these are not the sizes of the run, restore config.yaml and "
            "tokenizer.json from a copy",
        )


def _expected_parameters(config: Config, vocab_size: int) -> int | None:
    """Return the number of parameters of the model; None for a model whose size depends on its text."""
    if has_formula(config):
        return count.total(count.parameters(config, vocab_size))
    # A plugin's model, which may not support the meta device.
    with contextlib.suppress(Exception), torch.device("meta"):
        model = build(config, vocab_size)
        if not isinstance(model, FittedModel):
            stored = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
            return sum(tensor.numel() for tensor in stored.values())
    return None
