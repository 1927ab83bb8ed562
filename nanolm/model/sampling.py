"""Autoregressive sampling from a language model."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from nanolm.errors import DivergedError


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt_T: torch.Tensor,
    new_tokens: int,
    *,
    context_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stride: int | None = None,
    use_cache: bool = True,
) -> torch.Tensor:
    """Sample a continuation of a prompt.

    Random numbers come from a separate generator, so that sampling never changes a training run.

    Args:
        model: module that maps tokens_BxT to logits_BxTxV. If it has `make_cache`, keys and values are cached.
        prompt_T: at least one token, on the model's device.
        context_length: largest number of tokens that the model reads.
        temperature: divisor of the logits; 0 selects the most likely token.
        top_k: number of most likely tokens to sample from; None samples from all tokens.
        stride: number of tokens dropped from the beginning of a full context, after which keys and values are
            recomputed because all positions have changed. Each token is predicted from at least context_length - stride
            tokens once the context has been full. None: a quarter of the context.
        use_cache: False recomputes the whole context for every token; the logits are the same.

    Returns:
        The new tokens, one-dimensional, on the CPU.

    Raises:
        DivergedError: the logits are not finite.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    next_logits = next_logits_fn(
        model, context_length, max(1, context_length // 4) if stride is None else stride, use_cache
    )
    tokens_T = prompt_T
    for _ in range(new_tokens):
        logits_V = next_logits(tokens_T).float().cpu()
        if not math.isfinite(logits_V.max()):
            raise DivergedError(
                "the logits of the model are not finite",
                where=f"token {len(tokens_T) + 1} of the text",
                hint="use another checkpoint: `nanolm checkpoints RUN` lists them",
            )
        if temperature == 0:
            token = logits_V.argmax(keepdim=True)
        else:
            # Subtracting the maximum avoids inf - inf in softmax when the temperature is small.
            logits_V = (logits_V - logits_V.max()) / max(temperature, torch.finfo(logits_V.dtype).tiny)
            if top_k is not None and top_k < len(logits_V):
                logits_V[logits_V < logits_V.topk(top_k).values[-1]] = -torch.inf
            token = torch.multinomial(logits_V.softmax(dim=0), 1, generator=generator)
        tokens_T = torch.cat([tokens_T, token.to(tokens_T.device)])
    model.train(was_training)
    return tokens_T[len(prompt_T) :].cpu()


def next_logits_fn(
    model: nn.Module, context_length: int, stride: int, use_cache: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from a growing text tokens_T to logits_V of its next token; arguments as in `sample`."""
    make_cache = getattr(model, "make_cache", None) if use_cache else None
    cache = None
    window_start = 0

    def next_logits(tokens_T: torch.Tensor) -> torch.Tensor:
        nonlocal cache, window_start
        n_excess = max(0, len(tokens_T) - context_length)
        new_start = -(-n_excess // stride) * stride
        window_T = tokens_T[new_start:]
        if make_cache is None:
            return model(window_T[None])[0, -1]
        if cache is None or new_start != window_start:
            cache, window_start = make_cache(), new_start
        return model(window_T[cache.length :][None], cache=cache)[0, -1]

    return next_logits
