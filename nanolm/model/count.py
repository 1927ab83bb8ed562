"""Closed-form counts of parameters and FLOPs, computed from a config without building the model.

Formulas use the dimensions of nanolm/model/__init__.py. Widths that are derived from C are written as multiples of C.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from nanolm.config.batch_schedule import stages, with_stage
from nanolm.config.model import AttentionKind, FeedForwardKind, Norm, Positions, TransformerConfig
from nanolm.config.run import Config
from nanolm.model.formulas import Amount, formulas_of
from nanolm.model.polynomial import ONE, ZERO, C, N, Polynomial, T, V
from nanolm.model.shapes import (
    adapter_weights,
    attention_matrices,
    biases,
    dimensions,
    feed_forward_matrices,
    has_formula,
    model_with_formula,
    weights,
    widths_of,
)

# The part of low-rank adapters.
ADAPTERS = "adapters"


@dataclasses.dataclass(frozen=True)
class Part:
    """The count of one part of the model.

    Attributes:
        formula: as printed; 'none' if the count is zero.
        amount: parameters, FLOPs per token or bytes, in all layers.
        per_layer: the amount in each layer.
    """

    name: str
    formula: str
    amount: int
    per_layer: int = 0


def parameters(config: Config, vocab_size: int) -> list[Part]:
    """Count the parameters of each part of the model; a tied head is counted as the token embedding.

    Raises:
        SettingsError: the model is a plugin's.
    """
    settings, sizes = model_with_formula(config), dimensions(config, vocab_size)
    if not isinstance(settings, TransformerConfig):
        return _evaluate_all(formulas_of(config).parameters, sizes)
    per_norm = {Norm.none: 0, Norm.rms_norm: int(settings.norm_weight), Norm.layer_norm: 1 + settings.bias}[
        settings.norm
    ]
    n_layer_norms = 1 + (settings.feed_forward is not FeedForwardKind.none)
    n_other_norms = settings.embedding_norm + settings.has_final_norm
    attention, feed_forward = attention_matrices(config), feed_forward_matrices(config)
    parts = [
        evaluate_part("token embedding", sizes, once=V * C),
        evaluate_part("positions", sizes, once=T * C * (settings.positions is Positions.learned)),
        evaluate_part("attention", sizes, weights(attention) + biases(attention) * settings.has_attention_bias),
        evaluate_part("feed-forward", sizes, weights(feed_forward) + biases(feed_forward) * settings.bias),
        evaluate_part("norms", sizes, C * n_layer_norms * per_norm, once=C * n_other_norms * per_norm),
        evaluate_part("head", sizes, once=V * C * (not settings.tie_embeddings) + V * settings.head_bias),
    ]
    if settings.embedding_convolution or settings.sublayer_convolution:
        per_layer = C * n_layer_norms * ((settings.sublayer_convolution or 1) - 1)
        once = C * ((settings.embedding_convolution or 1) - 1)
        parts.append(evaluate_part("convolutions", sizes, per_layer, once=once))
    if settings.ngram_mix.order is not None:
        parts.append(evaluate_part("n-gram weights", sizes, once=settings.ngram_mix.order * (C + ONE)))
    return [*parts, evaluate_part(ADAPTERS, sizes, adapter_weights(config))] if settings.has_adapters else parts


def trained(parts: list[Part]) -> int:
    """Return how many of the parameters are trained: those of adapters, or else all."""
    return next((part.amount for part in parts if part.name == ADAPTERS), total(parts))


def flops_per_token(config: Config, vocab_size: int) -> list[Part]:
    """Count the floating-point operations of a forward pass per token of a full context.

    These are 2 per weight of a matrix product, the head included (Kaplan et al. 2020, section 2.1), and 4 T C per layer
    for scores and weighted values (2 T H D + 2 T H E), as if every position saw all T positions whatever the mask
    (Chowdhery et al. 2022, appendix B; Kaplan's table 1 counts half of it). Uniform attention takes 2 T C. Embedding
    lookups, norms, biases, activations, softmax and the loss are not counted.

    Raises:
        SettingsError: the model is a plugin's.
    """
    settings, sizes = model_with_formula(config), dimensions(config, vocab_size)
    if not isinstance(settings, TransformerConfig):
        return _evaluate_all(formulas_of(config).flops, sizes)
    widths = widths_of(config)
    scores = C if settings.attention is AttentionKind.uniform else widths.queries + widths.output
    parts = [
        evaluate_part("attention projections", sizes, 2 * weights(attention_matrices(config))),
        evaluate_part("attention over T", sizes, 2 * T * scores),
        evaluate_part("feed-forward", sizes, 2 * weights(feed_forward_matrices(config))),
        evaluate_part("head", sizes, once=2 * V * C),
    ]
    return [*parts, evaluate_part(ADAPTERS, sizes, 2 * adapter_weights(config))] if settings.has_adapters else parts


def training_flops_per_token(config: Config, vocab_size: int) -> int | None:
    """Return the FLOPs of a training step per token; None for a plugin's model, which has no formula.

    The backward pass costs twice the forward pass (Kaplan et al. 2020, section 2.1): as much for the gradients of the
    activations as for those of the weights. With adapters, only theirs are computed of the latter.
    """
    if not has_formula(config):
        return None
    parts = flops_per_token(config, vocab_size)
    return 2 * total(parts) + trained(parts)


def flops_by_context(config: Config, vocab_size: int) -> dict[int, int]:
    """Return the training FLOPs per token at each context length of the batches; empty for a plugin's model."""
    found = {
        stage.context_length: training_flops_per_token(with_stage(config, stage), vocab_size)
        for stage in stages(config)
    }
    return {length: flops for length, flops in found.items() if flops is not None}


def mean_flops_per_token(config: Config, vocab_size: int) -> int | None:
    """Return the training FLOPs per token, the mean over the batches of a run; None for a plugin's model."""
    by_context = flops_by_context(config, vocab_size)
    if not by_context:
        return None
    tokens = {stage: (stage.end - stage.start) * stage.tokens_per_step for stage in stages(config)}
    return round(sum(n * by_context[stage.context_length] for stage, n in tokens.items()) / sum(tokens.values()))


def total(parts: list[Part]) -> int:
    """Sum the amounts of all parts."""
    return sum(part.amount for part in parts)


def _evaluate_all(amounts: Iterable[Amount], sizes: dict[str, int]) -> list[Part]:
    return [evaluate_part(amount.name, sizes, amount.per_layer, once=amount.once) for amount in amounts]


def evaluate_part(name: str, sizes: dict[str, int], per_layer: Polynomial = ZERO, *, once: Polynomial = ZERO) -> Part:
    """Evaluate a part that occurs in every layer, plus what occurs once in the model."""
    formulas = [str(once)] if once.terms else []
    if len(per_layer.terms) == 1:
        formulas.insert(0, str(N * per_layer))
    elif per_layer.terms:
        formulas.insert(0, f"N ({per_layer})")
    amount_per_layer = per_layer.evaluate(sizes)
    return Part(
        name,
        " + ".join(formulas) or "none",
        sizes["N"] * amount_per_layer + once.evaluate(sizes),
        amount_per_layer,
    )
