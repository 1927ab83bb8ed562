"""Attention maps: the attention weights of a checkpoint on a short text, with the mask of each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from nanolm.analysis.collection import Run
from nanolm.config.mask import layer_masks
from nanolm.errors import SettingsError
from nanolm.inference.activations import record, require_layers
from nanolm.inference.load import Loaded, load_run
from nanolm.model import masks
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
    require_layers(loaded, layers, "--layer")
    ids = loaded.tokenizer.encode(text)
    if not len(ids):
        raise SettingsError(f"{text!r} has no tokens", where="--text", hint="give it at least one word")
    length = min(len(ids), MAX_TOKENS, loaded.config.size.context_length)
    tensors, chosen = record(model, torch.from_numpy(ids[None, :length].astype(np.int64)).to(loaded.device), layers)
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
                tensors[f"blocks.{layer}.attention.weights"][0].float().cpu().numpy(),
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
