"""Who looks at whom: the attention weights of a run's checkpoint over a short text, beside the mask of each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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
from nanolm.report.samples import read as read_samples

# More tokens than this are too many to tell apart on a page.
LONGEST = 32

# What is read where no text is given and the run has written nothing.
TEXT = "To be"


@dataclasses.dataclass(frozen=True)
class LayerMap:
    """What one layer does with a text.

    Attributes:
        layer: counted from 0.
        mask: its name and settings, in words.
        visible_TxT: bool; row q, column k is whether query q sees key k.
        weights_HxTxT: what head h of query q gives to key k; each row sums to 1. Uniform attention has one head.
    """

    layer: int
    mask: str
    visible_TxT: np.ndarray  # noqa: N815  its shape is in its name
    weights_HxTxT: np.ndarray  # noqa: N815


@dataclasses.dataclass(frozen=True)
class TextMap:
    """A text as one run's checkpoint reads it.

    Attributes:
        text: as it was given.
        tokens: the text of each token that was looked at.
        n_left_out: tokens behind those, for which there was no room.
        step: of the checkpoint.
        layers: those that were asked for.
    """

    text: str
    tokens: list[str]
    n_left_out: int
    step: int
    layers: list[LayerMap]


@dataclasses.dataclass(frozen=True)
class RunMaps:
    """The texts that a run was given to read; its name is that of the collection."""

    run: str
    texts: list[TextMap]


def of_run(run: Run, texts: Sequence[str], layers: Sequence[int] | None, plugins: Sequence[str]) -> RunMaps:
    """Opens the best checkpoint of a run, on the CPU, and looks at its attention.

    Args:
        run: one that `why_none` has nothing against.
        texts: what it reads; none: the beginning of what it wrote last, in which every character is known to it.
        layers: counted from 0; None: all.
        plugins: the user's modules that the run was made with.

    Raises:
        RunError: it has no checkpoint yet.
        CheckpointError: the checkpoint is damaged.
        SettingsError, TokenizerError: as `look`.
    """
    loaded = load_run(str(run.path), device="cpu", plugins=list(plugins))
    return RunMaps(run.name, [look(loaded, text, layers) for text in texts or [_own_text(loaded.run.samples)]])


def _own_text(samples: Path) -> str:
    written = [sample.text.strip() for sample in read_samples(samples)]
    return next((text[: 8 * LONGEST] for text in reversed(written) if text), TEXT)


def look(loaded: Loaded, text: str, layers: Sequence[int] | None = None) -> TextMap:
    """The attention of a checkpoint over the first tokens of a text.

    Args:
        loaded: the run; its model is a transformer with layers, see `why_none`.
        text: what it reads.
        layers: counted from 0; None: all.

    Raises:
        SettingsError: there is nothing to read, or no such layer.
        TokenizerError: the text has characters that the tokenizer has never seen.
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
    length = min(len(ids), LONGEST, loaded.config.size.context_length)
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
    """Why a run has no attention to look at, in words; None where it has."""
    name = run.settings.get("model.name")
    if name is None:
        return "its settings cannot be read"
    if name != "transformer":
        return f"the model {name} has no attention"
    if not run.settings.get("size.n_layers"):
        return "the model has no layers"
    return None


@contextmanager
def _recording(model: Transformer) -> Iterator[list[torch.Tensor]]:
    """Within it, the weights BxHxTxT of each layer of a forward pass are added to the list."""
    found: list[torch.Tensor] = []

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BxTxC, gather, *rest = arguments

        def gather_and_keep(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
            found.append(_weights(gather, q, k, v))
            return gather(q, k, v, dropout)

        return x_BxTxC, gather_and_keep, *rest

    path, was_training = model.attention_backend, model.training
    model.attention_backend = AttentionBackend.dense
    model.eval()
    attentions = [cast(nn.Module, block.attention) for block in model.blocks]
    hooks = [attention.register_forward_pre_hook(record) for attention in attentions]
    try:
        with torch.no_grad():
            yield found
    finally:
        model.attention_backend = path
        model.train(was_training)
        for hook in hooks:
            hook.remove()


def _weights(gather: AttentionFn, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What was gathered is linear in the values: of values that are the rows of a unit matrix, it is the weights."""
    length = k.size(2)
    unit = torch.eye(length, dtype=v.dtype, device=v.device).expand(*v.shape[:2], length, length)
    return gather(q, k, unit, 0.0)
