"""Samplers: pure functions from logits and settings to the logits that a token is drawn from, and the draw.

`process` applies them in this order, which is also that of transformers: repetition penalty, temperature, top-k, top-p,
min-p. A token that a sampler excludes has the logit -inf. Tokens of equal probability are kept or excluded together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nanolm.inference.settings import GenerationSettings

Sampler = Callable[[torch.Tensor, GenerationSettings], torch.Tensor]

# Candidates for top-p that are tried before the whole vocabulary is sorted.
_FEW = 512


def penalize_repetition(
    logits_BxV: torch.Tensor, seen_BxV: torch.Tensor | None, settings: GenerationSettings
) -> torch.Tensor:
    """Make tokens that are already in the text less likely.

    Args:
        seen_BxV: whether the text of a row has the token, prompt included; unused if the penalty is 1.
    """
    penalty = settings.repetition_penalty
    if penalty == 1 or seen_BxV is None:
        return logits_BxV
    return torch.where(seen_BxV, torch.where(logits_BxV < 0, logits_BxV * penalty, logits_BxV / penalty), logits_BxV)


def scale_by_temperature(logits_BxV: torch.Tensor, settings: GenerationSettings) -> torch.Tensor:
    """Subtract the maximum of each row and divide by the temperature; temperature 0 leaves the logits unchanged."""
    if settings.temperature == 0:
        return logits_BxV
    # Subtracting the maximum avoids inf - inf in softmax when the temperature is small.
    shifted_BxV = logits_BxV - logits_BxV.amax(dim=-1, keepdim=True)
    if settings.temperature == 1:
        return shifted_BxV
    return shifted_BxV / max(settings.temperature, torch.finfo(logits_BxV.dtype).tiny)


def keep_top_k(logits_BxV: torch.Tensor, settings: GenerationSettings) -> torch.Tensor:
    """Keep the top_k most likely tokens, and those that are as likely as the last of them."""
    if settings.top_k is None or settings.top_k >= logits_BxV.size(-1):
        return logits_BxV
    lowest_Bx1 = logits_BxV.topk(settings.top_k, dim=-1).values[..., -1:]
    return logits_BxV.masked_fill(logits_BxV < lowest_Bx1, -torch.inf)


def keep_top_p(logits_BxV: torch.Tensor, settings: GenerationSettings) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose probabilities sum to top_p; at least one token is kept."""
    if settings.top_p is None or settings.top_p >= 1:
        return logits_BxV
    probabilities_BxV = logits_BxV.softmax(dim=-1)
    vocab_size = logits_BxV.size(-1)
    # Sorting the vocabulary takes as long as a small model. On a GPU, looking at the result would take longer.
    sizes = [vocab_size] if logits_BxV.is_cuda or vocab_size <= _FEW else [_FEW, vocab_size]
    for size in sizes:
        highest_BxK = probabilities_BxV.topk(size, dim=-1).values
        is_kept_BxK = highest_BxK.cumsum(dim=-1) - highest_BxK < settings.top_p
        if size == vocab_size or not is_kept_BxK[..., -1].any():
            break
    lowest_Bx1 = highest_BxK.gather(-1, is_kept_BxK.sum(dim=-1, keepdim=True).clamp(min=1) - 1)
    return logits_BxV.masked_fill(probabilities_BxV < lowest_Bx1, -torch.inf)


def keep_min_p(logits_BxV: torch.Tensor, settings: GenerationSettings) -> torch.Tensor:
    """Keep the tokens whose probability is at least min_p times that of the most likely token."""
    if not settings.min_p:
        return logits_BxV
    probabilities_BxV = logits_BxV.softmax(dim=-1)
    lowest_Bx1 = settings.min_p * probabilities_BxV.amax(dim=-1, keepdim=True)
    return logits_BxV.masked_fill(probabilities_BxV < lowest_Bx1, -torch.inf)


# After the repetition penalty, in this order.
SAMPLERS: tuple[Sampler, ...] = (scale_by_temperature, keep_top_k, keep_top_p, keep_min_p)


def process(logits_BxV: torch.Tensor, seen_BxV: torch.Tensor | None, settings: GenerationSettings) -> torch.Tensor:
    """Apply all samplers; arguments as in `penalize_repetition`."""
    logits_BxV = penalize_repetition(logits_BxV, seen_BxV, settings)
    for sampler in SAMPLERS:
        logits_BxV = sampler(logits_BxV, settings)
    return logits_BxV


def draw(logits_BxV: torch.Tensor, uniform_Bx1: torch.Tensor) -> torch.Tensor:
    """Draw a token of each row from softmax(logits), by inversion of the cumulative distribution.

    Args:
        uniform_Bx1: fp64 draws from [0, 1).

    Returns:
        tokens_B.
    """
    cumulative_BxV = logits_BxV.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total_Bx1 = cumulative_BxV[:, -1:]
    # Below the total, so that the token found has a probability above 0.
    target_Bx1 = torch.minimum(uniform_Bx1 * total_Bx1, total_Bx1.nextafter(torch.zeros_like(total_Bx1)))
    # With NaN logits, nothing is found: the index would be V.
    return torch.searchsorted(cumulative_BxV, target_Bx1, right=True)[:, 0].clamp(max=logits_BxV.size(-1) - 1)


def uniform_draws(generators: Sequence[torch.Generator], device: torch.device | str = "cpu") -> torch.Tensor:
    """Draw one number from [0, 1) per generator, Bx1 in fp64.

    They are drawn on the CPU, so that a seed gives the same text on every device.
    """
    draws = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(draws).to(device, non_blocking=True)
