"""Attention maps: the attention weights of a checkpoint on a short text, with the mask of each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from nanolm.analysis.collection import Run
from nanolm.config.mask import layer_masks
from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError
from nanolm.inference.load import Loaded, load_run
from nanolm.model import masks
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.transformer import Transformer
from nanolm.runs.samples import read_samples

# More tokens would be illegible on the page.
MAX_TOKENS = 32

# The text if none is given and the run has no samples.
DEFAULT_TEXT = "To be"


@dataclasses.dataclass(frozen=True)
class LayerMap:
    """The attention of one layer on a text.

    Attributes:
        layer: counted from 0.
        mask: name and settings of the mask.
        visible_TxS: bool; row q, column k is whether query q attends to key k.
        weights_HxTxS: attention weights; each row sums to 1. Uniform attention has one head.
    """

    layer: int
    mask: str
    visible_TxS: np.ndarray  # noqa: N815  the name gives the shape
    weights_HxTxS: np.ndarray  # noqa: N815


@dataclasses.dataclass(frozen=True)
class TextMap:
    """The attention of a checkpoint on a text.

    Attributes:
        text: the whole text.
        tokens: the texts of the first tokens, at most MAX_TOKENS.
        n_left_out: number of the other tokens.
        step: step of the checkpoint.
        layers: the requested layers.
    """

    text: str
    tokens: list[str]
    n_left_out: int
    step: int
    layers: list[LayerMap]


@dataclasses.dataclass(frozen=True)
class RunMaps:
    """The attention maps of a run, by its name in the collection."""

    run: str
    texts: list[TextMap]


def run_maps(run: Run, texts: Sequence[str], layers: Sequence[int] | None, plugins: Sequence[str]) -> RunMaps:
    """Compute the attention maps of a run's best checkpoint, on the CPU.

    Args:
        run: a run for which `why_none` returns None.
        texts: input texts; if empty, the beginning of the last sample, whose characters are in the vocabulary.
        layers: counted from 0; None for all.
        plugins: the user's modules that the run was made with.

    Raises:
        RunError: the run has no checkpoint yet.
        CheckpointError: the checkpoint is damaged.
        SettingsError, TokenizerError: as `text_map`.
    """
    loaded = load_run(str(run.path), device="cpu", plugins=plugins)
    samples = [text for sample in read_samples(loaded.run.samples) if (text := sample.text.strip())]
    last = samples[-1][: 8 * MAX_TOKENS] if samples else DEFAULT_TEXT
    return RunMaps(run.name, [text_map(loaded, text, layers) for text in texts or [last]])


def text_map(loaded: Loaded, text: str, layers: Sequence[int] | None = None) -> TextMap:
    """Compute the attention of a model on the first tokens of a text.

    Args:
        loaded: a run for which `why_none` returns None.
        layers: counted from 0; None for all.

    Raises:
        SettingsError: the text has no tokens, or there is no such layer.
        TokenizerError: the text has characters that are not in the vocabulary.
    """
    model = loaded.model
    assert isinstance(model, Transformer), f"{type(model).__name__} has no attention"
    n_layers = len(model.blocks)
    chosen = range(n_layers) if layers is None else layers
    for layer in chosen:
        if not 0 <= layer < n_layers:
            raise SettingsError(
                f"{loaded.run.path} has no layer {layer}", where="--layer", hint=f"from 0 to {n_layers - 1}"
            )
    ids = loaded.tokenizer.encode(text)
    if not len(ids):
        raise SettingsError(f"{text!r} has no tokens", where="--text", hint="give it at least one word")
    length = min(len(ids), MAX_TOKENS, loaded.config.size.context_length)
    tokens_1xT = torch.from_numpy(ids[None, :length].astype(np.int64)).to(loaded.device)
    with _recording(model) as weights:
        model(tokens_1xT)
    in_layers = layer_masks(loaded.config)
    return TextMap(
        text=text,
        tokens=[loaded.tokenizer.decode([token]) for token in ids[:length].tolist()],
        n_left_out=len(ids) - length,
        step=loaded.step,
        layers=[
            LayerMap(
                layer,
                masks.describe_mask(in_layers[layer]),
                masks.dense_mask(in_layers[layer], length).numpy(),
                weights[layer][0].float().cpu().numpy(),
            )
            for layer in chosen
        ],
    )


def why_none(run: Run) -> str | None:
    """Return why a run has no attention maps; None if it has."""
    name = run.settings.get("model.name")
    if name is None:
        return "config.yaml cannot be read"
    if name != "transformer":
        return f"the model {name} has no attention"
    if not run.settings.get("size.n_layers"):
        return "the model has no layers"
    return None


@contextmanager
def _recording(model: Transformer) -> Iterator[list[torch.Tensor]]:
    """Record the weights BxHxTxS of each layer during a forward pass."""
    recorded: list[torch.Tensor] = []

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BxTxC, attend, *rest = arguments

        def attend_and_record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
            recorded.append(_weights(attend, q, k, v))
            return attend(q, k, v, dropout)

        return x_BxTxC, attend_and_record, *rest

    backend, was_training = model.attention_backend, model.training
    model.attention_backend = AttentionBackend.dense
    model.eval()
    attentions = [cast(nn.Module, block.attention) for block in model.blocks]
    hooks = [attention.register_forward_pre_hook(record) for attention in attentions]
    try:
        with torch.no_grad():
            yield recorded
    finally:
        model.attention_backend = backend
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def _weights(attend: AttentionFn, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the attention weights: the output is linear in the values, so identity values give the weights."""
    length = k.size(2)
    unit = torch.eye(length, dtype=v.dtype, device=v.device).expand(*v.shape[:2], length, length)
    return attend(q, k, unit, 0.0)
