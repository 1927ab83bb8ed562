"""Dimensions and weight matrices of the built-in models, derived from a config without building the model."""

from __future__ import annotations

import dataclasses

from nanolm.config.model import (
    AttentionKind,
    BigramConfig,
    FeedForwardKind,
    MlpConfig,
    ModelConfig,
    Positions,
    RnnConfig,
    TransformerConfig,
)
from nanolm.config.run import Config
from nanolm.errors import SettingsError
from nanolm.model.formulas import Matrix, formulas_of
from nanolm.model.polynomial import ZERO, C, D, E, F, G, H, Polynomial, T, V

# Built-in models with a formula.
COUNTED = {schema.name: schema for schema in (BigramConfig, MlpConfig, RnnConfig, TransformerConfig)}


def has_formula(config: Config) -> bool:
    """Return whether the model is a built-in one with formulas."""
    return config.model.name in COUNTED


def has_adapters(config: Config) -> bool:
    """Return whether only low-rank adapters of the model are trained."""
    return isinstance(config.model, TransformerConfig) and config.model.has_adapters


def has_ngram_mix(config: Config) -> bool:
    """Return whether counted n-grams are mixed into the logits of the model."""
    return isinstance(config.model, TransformerConfig) and config.model.has_ngram_mix


def model_with_formula(config: Config) -> ModelConfig:
    """Return the settings of a built-in model.

    Raises:
        SettingsError: the model is a plugin's.
    """
    if not has_formula(config):
        raise SettingsError(
            f"there is no formula for the model {config.model.name!r}",
            where="model",
            hint=f"models with a formula: {', '.join(COUNTED)}",
        )
    return config.model


@dataclasses.dataclass(frozen=True)
class Widths:
    """Widths inside a layer.

    Attributes:
        queries: of all heads.
        output: of all heads' weighted values.
        keys: of all heads of keys; `queries` unless query heads share them.
        values: of all heads of values.
        hidden: of the feed-forward network.
    """

    queries: Polynomial
    output: Polynomial
    keys: Polynomial
    values: Polynomial
    hidden: Polynomial


def widths_of(config: Config) -> Widths:
    """Return the widths as multiples of C, or with letters of their own where they are set."""
    size, has_gate = config.size, _has_gate(config)
    queries = C if size.d_key is None else H * D
    output = C if size.d_value is None else H * E
    is_shared = size.key_value_heads != size.n_heads
    return Widths(
        queries=queries,
        output=output,
        keys=G * D if is_shared else queries,
        values=G * E if is_shared else output,
        hidden=4 * C if size.d_ff is None and not has_gate else F,
    )


def dimensions(config: Config, vocab_size: int) -> dict[str, int]:
    """Return the size of each dimension, by its letter."""
    size = config.size
    return {
        "V": vocab_size,
        "N": size.n_layers,
        "T": size.context_length,
        "C": size.d_model,
        "H": size.n_heads,
        "G": size.key_value_heads,
        "D": size.key_width,
        "E": size.value_width,
        "F": size.hidden_width(_has_gate(config)),
        **({"W": config.model.window} if isinstance(config.model, MlpConfig) else {}),
    }


def _has_gate(config: Config) -> bool:
    return isinstance(config.model, TransformerConfig) and config.model.has_gate


def attention_matrices(config: Config) -> list[Matrix]:
    """Return the weight matrices of one layer's attention, as they are stored."""
    settings, widths = config.model, widths_of(config)
    assert isinstance(settings, TransformerConfig)
    if settings.attention is AttentionKind.uniform:
        return [(C, C)] * settings.output_projection
    stacked = widths.queries + widths.keys + widths.values
    return [(stacked, C), *[(C, widths.output)] * settings.output_projection]


def feed_forward_matrices(config: Config) -> list[Matrix]:
    """Return the weight matrices of one layer's feed-forward network, a gate stacked on the first one."""
    settings, hidden = config.model, widths_of(config).hidden
    assert isinstance(settings, TransformerConfig)
    n_stacked = 1 + settings.has_gate
    matrices: dict[FeedForwardKind, list[Matrix]] = {
        FeedForwardKind.none: [],
        FeedForwardKind.one_layer: [(n_stacked * C, C)],
        FeedForwardKind.two_layers: [(n_stacked * hidden, C), (C, hidden)],
    }
    return matrices[settings.feed_forward]


def adapted_matrices(config: Config) -> list[Matrix]:
    """Return the weight matrices of one layer that have low-rank adapters."""
    settings = config.model
    if not has_adapters(config):
        return []
    assert isinstance(settings, TransformerConfig)
    attention, feed_forward = iter(attention_matrices(config)), iter(feed_forward_matrices(config))
    matrices = {
        "query_key_value": None if settings.attention is AttentionKind.uniform else next(attention, None),
        "projection": next(attention, None),
        "feed_forward_expansion": next(feed_forward, None),
        "feed_forward_projection": next(feed_forward, None),
    }
    return [matrix for target in settings.lora.targets if (matrix := matrices[target]) is not None]


def adapter_weights(config: Config) -> Polynomial:
    """Return the weights of one layer's adapters: rank rows or columns for each side of an adapted matrix."""
    settings = config.model
    rank = settings.lora.rank if isinstance(settings, TransformerConfig) else None
    return (rank or 0) * sides(adapted_matrices(config))


def layer_matrices(config: Config) -> list[Matrix]:
    """Return the weight matrices of one layer."""
    if not isinstance(config.model, TransformerConfig):
        return list(formulas_of(config).layer_matrices)
    return attention_matrices(config) + feed_forward_matrices(config)


def hidden_matrices(config: Config) -> list[Matrix]:
    """Return the weight matrices between the embedding and the head that are not part of a layer."""
    return [] if isinstance(config.model, TransformerConfig) else list(formulas_of(config).hidden_matrices)


def end_matrices(config: Config) -> list[Matrix]:
    """Return the weight matrices of the embeddings and the head."""
    settings = config.model
    if not isinstance(settings, TransformerConfig):
        return list(formulas_of(config).end_matrices)
    n_token_matrices = 1 + (not settings.tie_embeddings)
    return [(V, C)] * n_token_matrices + [(T, C)] * (settings.positions is Positions.learned)


def weights(matrices: list[Matrix]) -> Polynomial:
    """Return the number of weights in all matrices."""
    return sum((rows * columns for rows, columns in matrices), ZERO)


def biases(matrices: list[Matrix]) -> Polynomial:
    """Return the number of biases if every matrix has one per row."""
    return sum((rows for rows, _ in matrices), ZERO)


def sides(matrices: list[Matrix]) -> Polynomial:
    """Return the number of rows and columns of all matrices."""
    return sum((rows + columns for rows, columns in matrices), ZERO)
