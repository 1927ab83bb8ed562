"""Writing: one token after another from the model's distribution."""

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
    """Continues a prompt.

    The generator is its own, so that sampling never changes a training run.

    Args:
        model: tokens_BxT to logits_BxTxV. One with `make_cache` computes each token once where its mask allows it.
        prompt_T: at least one token, on the model's device.
        new_tokens: how many to write.
        context_length: tokens that the model sees at most.
        temperature: divides the logits; 0 takes the likeliest token every time.
        top_k: draw from the k likeliest tokens alone.
        seed: of the generator.
        stride: when the context is full its first `stride` tokens are dropped at once, and keys and values computed
            anew, since every position has changed: each token is written behind at least context_length - stride
            others. None: a quarter of the context.
        use_cache: False computes the whole context for every token; the logits are the same.

    Returns:
        The new tokens, one-dimensional, on the CPU.

    Raises:
        DivergedError: the logits are not finite.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    next_logits = follow(model, context_length, max(1, context_length // 4) if stride is None else stride, use_cache)
    tokens_T = prompt_T
    for _ in range(new_tokens):
        logits_V = next_logits(tokens_T).float().cpu()
        if not math.isfinite(logits_V.max()):
            raise DivergedError(
                "the logits of the model are not finite",
                where=f"token {len(tokens_T) + 1} of the text",
                hint="another checkpoint: `nanolm checkpoints RUN` lists them",
            )
        if temperature == 0:
            drawn = logits_V.argmax(keepdim=True)
        else:
            # The largest is 0, so that a small temperature leaves no infinity less infinity.
            logits_V = (logits_V - logits_V.max()) / max(temperature, torch.finfo(logits_V.dtype).tiny)
            if top_k is not None and top_k < len(logits_V):
                logits_V[logits_V < logits_V.topk(top_k).values[-1]] = -torch.inf
            drawn = torch.multinomial(logits_V.softmax(dim=0), 1, generator=generator)
        tokens_T = torch.cat([tokens_T, drawn.to(tokens_T.device)])
    model.train(was_training)
    return tokens_T[len(prompt_T) :].cpu()


def follow(
    model: nn.Module, context_length: int, stride: int, use_cache: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that is given a text as it grows, tokens_T, and returns logits_V of what comes next.

    Args:
        model: in evaluation mode.
        context_length: tokens that it sees at most.
        stride: how far the window on the text moves on when it is full.
        use_cache: whether what stands is kept from call to call, where the model can.
    """
    make_cache = getattr(model, "make_cache", None) if use_cache else None
    cache = None
    window_start = 0

    def next_logits(tokens_T: torch.Tensor) -> torch.Tensor:
        nonlocal cache, window_start
        length = len(tokens_T)
        # The window moves on by whole strides, and only when it is full.
        moved_to = max(0, -(-(length - context_length) // stride) * stride)
        window_T = tokens_T[moved_to:]
        if make_cache is None:
            return model(window_T[None])[0, -1]
        if cache is None or moved_to != window_start:
            cache, window_start = make_cache(), moved_to
        return model(window_T[cache.length :][None], cache=cache)[0, -1]

    return next_logits
