"""Activations: named tensors of a forward pass over one text, recorded by hooks on the modules of the model.

The names are those of the modules. Shapes have the letters of nanolm.model, and `i` is a layer from 0 to N - 1:

    embedding                       TxC    input of the first block: embeddings, positions, norm
    blocks.i.attention.weights      HxTxS  attention weights by head; each row sums to 1. Uniform attention has one head
    blocks.i.attention              TxC    output of attention, which is added to the residual stream
    blocks.i.feed_forward           TxC    output of the feed-forward network; missing in models without one
    blocks.i                        TxC    residual stream after the block
    blocks.i.logits                 TxV    logit lens (nostalgebraist 2020): final norm and head applied to blocks.i
    logits                          TxV    output of the model

In models with residual connections and norms before the sublayers, such as model=gpt, gpt2 and llama, `embedding` plus
the outputs of the sublayers up to a layer is `blocks.i`. In all models, `logits` is the logit lens of the last block.
Other models than transformers have `logits` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from nanolm.config.trainer import AttentionBackend
from nanolm.errors import SettingsError
from nanolm.inference.load import Loaded
from nanolm.model.attention_backends import AttentionFn
from nanolm.model.transformer import Transformer


class Activations(Mapping[str, torch.Tensor]):
    """Named tensors of a forward pass, in the order of the computation.

    Attributes:
        tokens: the text of each token.
        ids: the token ids, T.
        layers: the layers that were recorded.
    """

    def __init__(
        self, tensors: dict[str, torch.Tensor], tokens: list[str], ids: torch.Tensor, layers: list[int]
    ) -> None:
        self._tensors = tensors
        self.tokens, self.ids, self.layers = tokens, ids, layers

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise KeyError(f"{name!r}; there are {', '.join(self._tensors)}")
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        """Return the shape of each tensor."""
        shapes = (f"  {name}: {'x'.join(map(str, tensor.shape))}" for name, tensor in self._tensors.items())
        return "\n".join([f"Activations of {len(self.tokens)} tokens:", *shapes])


def activations(loaded: Loaded, text: str, layers: Sequence[int] | None = None) -> Activations:
    """Record the activations of a model on a text, with the dense attention backend.

    Args:
        text: at most as many tokens as the context has.
        layers: counted from 0; None for all.

    Raises:
        SettingsError: there is no such layer, or the text has no tokens or too many.
        TokenizerError: the text has characters that are not in the vocabulary.
    """
    ids = loaded.tokenizer.encode(text)
    length, limit = len(ids), loaded.config.size.context_length
    if not length:
        raise SettingsError(f"{text!r} has no tokens", where="text", hint="give it at least one word")
    if length > limit:
        raise SettingsError(
            f"the text has {length:,} tokens, more than the context length", where="text", hint=f"at most {limit:,}"
        )
    require_layers(loaded, layers, "layers")
    tokens_1xT = torch.from_numpy(ids[None].astype(np.int64)).to(loaded.device)
    tensors, chosen = record(loaded.model, tokens_1xT, layers)
    texts = [loaded.tokenizer.decode([token]) for token in ids.tolist()]
    return Activations({name: tensor[0] for name, tensor in tensors.items()}, texts, tokens_1xT[0], chosen)


def require_layers(loaded: Loaded, layers: Sequence[int] | None, where: str) -> None:
    """Check the numbers of layers.

    Raises:
        SettingsError: the model has no such layer.
    """
    n_layers = len(loaded.model.blocks) if isinstance(loaded.model, Transformer) else 0
    for layer in layers or ():
        if not 0 <= layer < n_layers:
            hint = f"from 0 to {n_layers - 1}" if n_layers else f"{type(loaded.model).__name__} has no layers"
            raise SettingsError(f"{loaded.run.path} has no layer {layer}", where=where, hint=hint)


def attention_of_last(model: Transformer, tokens_T: torch.Tensor) -> list[torch.Tensor]:
    """Return what the last position of a text attends to: for each layer, attention weights HxS.

    Args:
        tokens_T: at most as many tokens as the context has.
    """
    tensors, layers = record(model, tokens_T[None], last_query_only=True, with_logit_lens=False)
    return [tensors[f"blocks.{layer}.attention.weights"][0, :, -1] for layer in layers]


def record(
    model: nn.Module,
    tokens_BxT: torch.Tensor,
    layers: Sequence[int] | None = None,
    *,
    last_query_only: bool = False,
    with_logit_lens: bool = True,
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Run a model and record its activations, in evaluation mode and without gradients.

    Args:
        tokens_BxT: at most as many tokens as the context has.
        layers: of a transformer, each of which exists; None for all.
        last_query_only: whether to keep only the attention weights of the last position, BxHx1xS.
        with_logit_lens: whether to compute blocks.i.logits; they take N times the memory of the logits.

    Returns:
        The tensors by name, with a first dimension B in front of the shapes above, and the layers.
    """
    if not isinstance(model, Transformer):
        with _evaluating(model), torch.no_grad():
            return {"logits": model(tokens_BxT)}, []
    chosen = list(range(len(model.blocks)) if layers is None else layers)
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        return lambda module, inputs, output: found.__setitem__(name, output)

    def keep_weights(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def replace_attend(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x_BxTxC, attend, *rest = inputs

            def attend_and_keep(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout: float) -> torch.Tensor:
                weights_BxHxTxS = _weights(attend, q, k, v)
                found[name] = weights_BxHxTxS[:, :, -1:].clone() if last_query_only else weights_BxHxTxS
                return attend(q, k, v, dropout)

            return x_BxTxC, attend_and_keep, *rest

        return replace_attend

    hooks = [model.dropout.register_forward_hook(keep("embedding"))]
    for layer in chosen:
        name, block = f"blocks.{layer}", model.get_submodule(f"blocks.{layer}")
        attention = block.get_submodule("attention")
        hooks.append(attention.register_forward_pre_hook(keep_weights(f"{name}.attention.weights")))
        hooks.append(attention.register_forward_hook(keep(f"{name}.attention")))
        if block.feed_forward is not None:
            hooks.append(block.get_submodule("feed_forward").register_forward_hook(keep(f"{name}.feed_forward")))
        hooks.append(block.register_forward_hook(keep(name)))
    try:
        with _evaluating(model), torch.no_grad():
            logits_BxTxV = model(tokens_BxT)
            for layer in chosen if with_logit_lens else ():
                found[f"blocks.{layer}.logits"] = model.unembed(found[f"blocks.{layer}"])
    finally:
        for hook in hooks:
            hook.remove()
    return {**_in_order(found, chosen), "logits": logits_BxTxV}, chosen


def _in_order(found: dict[str, torch.Tensor], layers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Sort tensors by layer; those of a layer stay in the order in which they were computed."""
    names = ["embedding"]
    for layer in layers:
        of_layer = f"blocks.{layer}"
        names += [name for name in found if name == of_layer or name.startswith(f"{of_layer}.")]
    return {name: found[name] for name in dict.fromkeys(names)}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, with the dense backend, which computes the weights of all pairs of positions."""
    was_training, backend = model.training, getattr(model, "attention_backend", None)
    model.eval()
    if isinstance(model, Transformer):
        model.attention_backend = AttentionBackend.dense
    try:
        yield
    finally:
        model.train(was_training)
        if isinstance(model, Transformer) and backend is not None:
            model.attention_backend = backend


def _weights(attend: AttentionFn, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return the attention weights: the output is linear in the values, so identity values give the weights."""
    length = k.size(2)
    unit = torch.eye(length, dtype=v.dtype, device=v.device).expand(*v.shape[:2], length, length)
    return attend(q, k, unit, 0.0)
