"""Writing: one token after another from the model's distribution."""

from __future__ import annotations

import torch
from torch import nn


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
) -> torch.Tensor:
    """Continues a prompt.

    The generator is its own, so that sampling never changes a training run.

    Args:
        model: tokens_BxT to logits_BxTxV.
        prompt_T: at least one token, on the model's device. Past context_length only the last tokens are seen.
        new_tokens: how many to write.
        temperature: divides the logits; 0 takes the likeliest token every time.
        top_k: draw from the k likeliest tokens alone.
        seed: of the generator.

    Returns:
        The new tokens, one-dimensional, on the CPU.
    """
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    tokens_T = prompt_T
    for _ in range(new_tokens):
        logits_V = model(tokens_T[-context_length:][None])[0, -1].float().cpu()
        if temperature == 0:
            drawn = logits_V.argmax(keepdim=True)
        else:
            logits_V = logits_V / temperature
            if top_k is not None and top_k < len(logits_V):
                logits_V[logits_V < logits_V.topk(top_k).values[-1]] = -torch.inf
            drawn = torch.multinomial(logits_V.softmax(dim=0), 1, generator=generator)
        tokens_T = torch.cat([tokens_T, drawn.to(tokens_T.device)])
    model.train(was_training)
    return tokens_T[len(prompt_T) :].cpu()
