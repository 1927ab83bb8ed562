"""Closed-form estimates of the memory of training, computed from a config without building the model."""

from __future__ import annotations

import dataclasses

from nanolm.config.batch_schedule import largest_stage
from nanolm.config.mask import has_table, layers_by_mask
from nanolm.config.model import (
    Activation,
    AttentionKind,
    FeedForwardKind,
    NgramConfig,
    Norm,
    Positions,
    TransformerConfig,
)
from nanolm.config.optimizer import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    LionConfig,
    MuonConfig,
    ScheduleFreeConfig,
    SGDConfig,
)
from nanolm.config.run import Config
from nanolm.config.trainer import Precision
from nanolm.model.count import Part, evaluate_part, parameters, trained
from nanolm.model.formulas import formulas_of
from nanolm.model.loss_chunks import chunk_rows, is_chunked
from nanolm.model.polynomial import ONE, ZERO, A, C, N, P, Polynomial, T, V
from nanolm.model.shapes import (
    adapted_matrices,
    dimensions,
    end_matrices,
    has_adapters,
    has_formula,
    hidden_matrices,
    layer_matrices,
    model_with_formula,
    sides,
    weights,
    widths_of,
)

# Values that an optimizer stores per parameter.
STATE_COPIES = {AdamConfig.name: 2, AdamWConfig.name: 2, LionConfig.name: 1, ScheduleFreeConfig.name: 2}

# Temporary copies of the parameters during an optimizer step; Adam, AdamW and SGD are fused.
TEMPORARY_COPIES = {LionConfig.name: 1, ScheduleFreeConfig.name: 2, MuonConfig.name: 2}

FP64_BYTES = 8
FP32_BYTES = 4
AUTOCAST_BYTES = 2


def state_memory(config: Config, n_parameters: int, vocab_size: int) -> list[Part]:
    """Count the bytes of weights, gradients and optimizer state, which are fp32 under autocast too.

    Not counted are the step counters of the optimizer, buffers such as rotary angles, autocast's copies of the weights,
    and the weights that schedule_free stores during an evaluation.

    Returns:
        Weights, gradients and, if its size is known, the optimizer state.
    """
    n_trained = _trained_parameters(config, n_parameters, vocab_size)
    sizes = {**dimensions(config, vocab_size), "P": n_parameters, "A": n_trained}
    trained = A if has_adapters(config) else P
    parts = [
        evaluate_part(name, sizes, once=FP32_BYTES * amount)
        for name, amount in (("weights", P), ("gradients", trained))
    ]
    state = _optimizer_state(config)
    return parts if state is None else [*parts, evaluate_part("optimizer", sizes, once=FP32_BYTES * state)]


def activation_memory(config: Config, vocab_size: int, number_format: str | None = None) -> Part:
    """Estimate the bytes live at the start of the backward pass of the largest batch: activations, and the loss.

    Per token and layer, fp32 holds the inputs of both norms (the residual). The autocast format holds the inputs of the
    linear layers, queries, keys and values, rotated or normalized copies of queries and keys, the output of attention
    and the hidden values of the feed-forward network. The loss holds fp32 log-probabilities and two gradients of size
    V, and one more with a softcap; in chunks (`nanolm.model.loss_chunks`), logits and log-probabilities of a chunk, and
    the gradient of the head. Attention is assumed to be a fused kernel, which stores no T x T scores. Compare
    Korthikanti et al. 2022, section 4.1.

    B, the sequences of a micro-batch, is trainer.batch_size / trainer.gradient_accumulation; B and T are those of the
    largest batch of the run.

    Args:
        number_format: fp32, tf32, bf16 or fp16; None is that of trainer.precision, where auto is fp32.

    Raises:
        SettingsError: the model is a plugin's.
    """
    trainer = config.trainer
    settings, sizes = model_with_formula(config), dimensions(config, vocab_size)
    width = _autocast_bytes(config, number_format)
    stage = largest_stage(config)
    n_tokens = stage.batch_size // trainer.gradient_accumulation * stage.context_length
    in_chunks = is_chunked(config, n_tokens, vocab_size)
    if isinstance(settings, TransformerConfig):
        ends = C * (FP32_BYTES * (1 + settings.embedding_norm) + width)
        # The log-probabilities of each order of n-grams are as large as the logits.
        n_tensors = 3 + (settings.logit_softcap is not None) + (settings.ngram_mix.order or 0)
        loss = C * width if in_chunks else V * (FP32_BYTES * n_tensors)
        per_token = evaluate_part("activations", sizes, _activation_bytes(config, width), once=ends + loss)
    else:
        stored = formulas_of(config).activations
        once = width * stored.once + 3 * FP32_BYTES * V
        per_token = evaluate_part("activations", sizes, width * stored.per_layer, once=once)
    activations = Part(
        "activations", f"B T ({per_token.formula})", n_tokens * per_token.amount, n_tokens * per_token.per_layer
    )
    if not in_chunks:
        return activations
    n_bytes = 2 * FP32_BYTES + width * (width < FP32_BYTES)
    head = evaluate_part("head", sizes, once=FP32_BYTES * V * C)
    chunk = n_bytes * chunk_rows(vocab_size) * vocab_size
    formula = f"{activations.formula} + {head.formula} + {chunk}"
    return dataclasses.replace(activations, formula=formula, amount=activations.amount + head.amount + chunk)


def peak_memory(config: Config, n_parameters: int, vocab_size: int, number_format: str | None = None) -> int:
    """Estimate the peak bytes of a training step in eager mode.

    The peak is usually the start of a backward pass, with activations and, under autocast, half-precision copies of the
    weights; from the second micro-batch on, gradients are live too. With few activations the peak is the optimizer
    step with its temporary tensors.

    Raises:
        SettingsError: the model is a plugin's.
    """
    parts = {part.name: part.amount for part in state_memory(config, n_parameters, vocab_size)}
    activations = activation_memory(config, vocab_size, number_format).amount
    if _autocast_bytes(config, number_format) == AUTOCAST_BYTES:
        activations += AUTOCAST_BYTES * n_parameters
    if config.trainer.gradient_accumulation > 1:
        activations += parts["gradients"]
    temporary = TEMPORARY_COPIES.get(config.optimizer.name, 0) * parts["gradients"]
    averages = parts["gradients"] if config.trainer.is_averaged else 0
    persistent = parts["weights"] + parts.get("optimizer", 0) + averages
    return persistent + max(activations, parts["gradients"] + temporary)


def cache_memory(config: Config, vocab_size: int) -> Part:
    """Count the bytes that generation stores for one sequence in fp32: the key-value cache, or the state of a model.

    Raises:
        SettingsError: the model is a plugin's.
    """
    settings, widths = model_with_formula(config), widths_of(config)
    if not isinstance(settings, TransformerConfig):
        stored = formulas_of(config).cache
        sizes = dimensions(config, vocab_size)
        return evaluate_part(stored.name, sizes, FP32_BYTES * stored.per_layer, once=FP32_BYTES * stored.once)
    # Uniform attention averages the residual, which the cache stores as both.
    values = 2 * C if settings.attention is AttentionKind.uniform else widths.keys + widths.values
    return evaluate_part("key-value cache", dimensions(config, vocab_size), FP32_BYTES * T * values)


def inference_memory(config: Config, vocab_size: int) -> int:
    """Return a lower bound on the bytes that a model takes for one sequence, without its weights."""
    tables = table_memory(config, vocab_size) + mask_memory(config)
    return tables + FP32_BYTES * config.size.context_length * vocab_size


def table_memory(config: Config, vocab_size: int) -> int:
    """Return a lower bound on the bytes of tables that depend on the context length, or on the vocabulary.

    These are the sines of positions, computed in fp64, the positions that a key-value cache counts, and the
    probabilities of an n-gram model.
    """
    settings, length = config.model, config.size.context_length
    if not isinstance(settings, TransformerConfig):
        return 3 * FP64_BYTES * vocab_size if isinstance(settings, NgramConfig) else 0
    width = {Positions.sinusoidal: config.size.d_model, Positions.rotary: config.size.key_width}
    return length * FP64_BYTES * (1 + width.get(settings.positions, 0))


def mask_memory(config: Config) -> int:
    """Return the bytes that evaluating the masks of a model takes in host memory, from distances in int64."""
    if not isinstance(config.model, TransformerConfig) or not any(
        has_table(mask) for mask, _ in layers_by_mask(config)
    ):
        return 0
    return (1 + FP64_BYTES) * config.size.context_length**2


def _autocast_bytes(config: Config, number_format: str | None) -> int:
    """Return the bytes of a number in linear layers."""
    name = number_format or config.trainer.precision.name
    return AUTOCAST_BYTES if name in (Precision.bf16.name, Precision.fp16.name) else FP32_BYTES


def _activation_bytes(config: Config, width: int) -> Polynomial:
    """Return the bytes per token that a transformer layer stores for the backward pass.

    Args:
        width: bytes of a number under autocast.
    """
    settings, widths = config.model, widths_of(config)
    assert isinstance(settings, TransformerConfig)
    n_sublayers = 1 + (settings.feed_forward is not FeedForwardKind.none)
    has_norm, has_dropout = settings.norm is not Norm.none, settings.dropout_of(settings.residual_dropout) > 0
    stored = C * (n_sublayers * (FP32_BYTES * has_norm + width + has_dropout))
    if settings.attention is AttentionKind.uniform:
        stored += C * width
    else:
        has_copy = settings.qk_norm or settings.positions is Positions.rotary
        stored += (widths.queries + widths.keys) * (width * (1 + has_copy))
        stored += (widths.values + widths.output) * width + widths.output * (width * has_copy)
        if widths.keys is not widths.queries:
            stored += (widths.queries + widths.output) * width
    # An activation stores its input or its output, as its gradient needs; a second linear layer stores its input.
    n_hidden = {Activation.relu: 1, Activation.swiglu: 4}.get(settings.activation, 2)
    hidden = {
        FeedForwardKind.none: ZERO,
        FeedForwardKind.one_layer: C * (1 + settings.has_gate),
        FeedForwardKind.two_layers: widths.hidden * n_hidden,
    }
    return stored + hidden[settings.feed_forward] * width


def _trained_parameters(config: Config, n_parameters: int, vocab_size: int) -> int:
    return trained(parameters(config, vocab_size)) if has_adapters(config) else n_parameters


def _optimizer_state(config: Config) -> Polynomial | None:
    """Return the values that the optimizer stores.

    None if the optimizer is a plugin's, or its state depends on shapes of a plugin's model.
    """
    optimizer, trained = config.optimizer, A if has_adapters(config) else P
    if optimizer.name in STATE_COPIES:
        return trained * STATE_COPIES[optimizer.name]
    if optimizer.name == SGDConfig.name:
        assert isinstance(optimizer, SGDConfig)
        return trained * (optimizer.momentum > 0)
    if optimizer.name not in (MuonConfig.name, AdafactorConfig.name) or not has_formula(config):
        return None
    settings = model_with_formula(config)
    if isinstance(settings, TransformerConfig) and settings.has_adapters:
        # All adapters are matrices of the layers, two for each adapted matrix.
        adapted, rank = adapted_matrices(config), settings.lora.rank or 0
        if isinstance(optimizer, MuonConfig):
            n_rows = sum((rows for rows, _ in adapted), ONE * (rank * len(adapted)))
            n_copies = 1 + (optimizer.orthogonalize_every > 1)
            return n_copies * A + (optimizer.normuon_beta2 is not None) * N * n_rows
        return N * (sides(adapted) + ONE * (2 * rank * len(adapted)))
    in_layer, hidden = layer_matrices(config), hidden_matrices(config)
    if isinstance(optimizer, MuonConfig):
        # AdamW's two moments, but for hidden matrices a momentum, the last update if it is repeated, and with NorMuon a
        # value per row.
        n_copies = 1 + (optimizer.orthogonalize_every > 1)
        n_rows = N * sum((rows for rows, _ in in_layer), ZERO) + sum((rows for rows, _ in hidden), ZERO)
        matrices = N * weights(in_layer) + weights(hidden)
        return 2 * P + (n_copies - 2) * matrices + (optimizer.normuon_beta2 is not None) * n_rows
    # One value per row and column of a matrix, and one per parameter that is not in a matrix.
    others = hidden + end_matrices(config)
    factored = N * weights(in_layer) + weights(others)
    return P + -1 * factored + N * sides(in_layer) + sides(others)
