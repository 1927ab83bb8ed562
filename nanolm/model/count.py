"""Parameters, FLOPs and memory by formula, from the settings alone.

What is printed of a formula is what is computed: both come from the same terms. In them V is the vocabulary, C the
width of the model, T the context, L the layers, N the parameters and B the sequences that are in flight at once.
"""

from __future__ import annotations

import dataclasses
import math

from nanolm.config import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    BigramConfig,
    Config,
    Initialization,
    LionConfig,
    MuonConfig,
    Norm,
    Positions,
    Precision,
    ScheduleFreeConfig,
    SGDConfig,
    TransformerConfig,
)
from nanolm.errors import SettingsError

# How often each product of sizes counts: {"C^2": 4, "C": 4} is 4 C^2 + 4 C.
Terms = dict[str, int]

# Rows and columns of a matrix, each as so many times a size: ((3, "C"), (1, "C")) is 3 C x C.
Matrix = tuple[tuple[int, str], tuple[int, str]]

# Models built in, whose parts are known; one registered by a plugin has another name.
COUNTED = {schema.name: schema for schema in (BigramConfig, TransformerConfig)}

# Numbers that an optimizer keeps for each parameter.
COPIES = {AdamConfig.name: 2, AdamWConfig.name: 2, LionConfig.name: 1, ScheduleFreeConfig.name: 2}

FP32_BYTES = 4
AUTOCAST_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Part:
    """What one part of the model comes to.

    Attributes:
        formula: as people read it; 'none' where there is nothing.
        amount: over all layers; parameters, FLOPs a token or bytes, by the function that returns it.
        per_layer: of that, what each layer has.
    """

    name: str
    formula: str
    amount: int
    per_layer: int = 0


def has_formula(config: Config) -> bool:
    """Whether the model is one of those that are counted here."""
    return config.model.name in COUNTED


def parameters(config: Config, vocab_size: int) -> list[Part]:
    """The trained numbers of each part; a tied head is the token embedding, and counts once.

    Raises:
        SettingsError: the model is a plugin's.
    """
    settings = _known(config)
    sizes = _sizes(config, vocab_size)
    if not isinstance(settings, TransformerConfig):
        return [_part("table", sizes, outside={"V^2": 1})]
    attention_bias = settings.bias if settings.attention_bias is None else settings.attention_bias
    in_a_norm = 0 if settings.norm is Norm.rms_norm else 1 + settings.bias
    # After the embedding, where it is normalised, and before the head.
    n_outer_norms = 1 + (settings.initialization is Initialization.zero_projections)
    return [
        _part("token embedding", sizes, outside={"V C": 1}),
        _part("positions", sizes, outside={"T C": int(settings.positions is Positions.learned)}),
        _part("attention", sizes, layer={"C^2": 4, "C": 4 * attention_bias}),
        _part("feed-forward", sizes, layer={"C^2": 8, "C": 5 * settings.bias}),
        _part("norms", sizes, layer={"C": 2 * in_a_norm}, outside={"C": n_outer_norms * in_a_norm}),
        _part("head", sizes, outside={"V C": int(not settings.tied_head), "V": int(settings.head_bias)}),
    ]


def flops_per_token(config: Config, vocab_size: int) -> list[Part]:
    """Floating-point operations of a forward pass for each token of a full context.

    Two for each weight of a matrix product (Kaplan et al. 2020, section 2.1), those of the head with them, tied or not;
    and 4 T C a layer for the scores and the gathering of values, as if every position saw all T, whatever the mask
    (Chowdhery et al. 2022, appendix B; Kaplan's table 1 has half of it). Looking up embeddings, norms, biases,
    activations, softmax and the loss are not counted.

    Raises:
        SettingsError: the model is a plugin's.
    """
    sizes = _sizes(config, vocab_size)
    if not isinstance(_known(config), TransformerConfig):
        return [_part("table", sizes)]
    return [
        _part("attention projections", sizes, layer={"C^2": 8}),
        _part("attention over T", sizes, layer={"T C": 4}),
        _part("feed-forward", sizes, layer={"C^2": 16}),
        _part("head", sizes, outside={"V C": 2}),
    ]


def training_flops(forward: int) -> int:
    """With the backward pass, which costs twice the forward pass: 6 N + 12 L T C a token (Kaplan et al. 2020, 2.1)."""
    return 3 * forward


def memory(config: Config, n_parameters: int, vocab_size: int) -> list[Part]:
    """Bytes that training holds from one update to the next, and its gradients, all in fp32 under autocast too.

    Not counted: a few bytes a tensor for the optimizer's number of updates, buffers such as rotary angles, autocast's
    copies of the matrices, and the weights that schedule_free puts aside while it is evaluated.

    Returns:
        Weights, gradients and, where it is known, the optimizer's state.
    """
    sizes = {**_sizes(config, vocab_size), "N": n_parameters}
    parts = [_part(name, sizes, outside={"N": FP32_BYTES}) for name in ("weights", "gradients")]
    state = _optimizer_state(config)
    if state is None:
        return parts
    in_bytes = {product: factor * FP32_BYTES for product, factor in state.items()}
    return [*parts, _part("optimizer", sizes, outside=in_bytes)]


def activation_memory(config: Config, vocab_size: int) -> Part:
    """An estimate of the bytes kept from the forward pass for the backward pass, at the full context.

    A layer keeps about 16 C numbers a token: what enters its two norms (2 C) and leaves them (2 C), queries, keys and
    values (3 C), what was gathered (C), and the inside of the feed-forward on both sides of its activation (8 C). To
    these come the ends of the stream (2 C), the logits and their softmax (2 V). Dropout, rotary positions and qk_norm
    keep more; a fused attention keeps no T x T scores. Compare Korthikanti et al. 2022, section 4.1.

    Sequences in flight are trainer.batch_size / trainer.accumulate. Numbers take 4 bytes, and half of it where
    trainer.precision is bf16 or fp16; auto counts as fp32, though a GPU makes it bf16.

    Raises:
        SettingsError: the model is a plugin's.
    """
    trainer = config.trainer
    sizes = _sizes(config, vocab_size)
    if isinstance(_known(config), TransformerConfig):
        a_token = _part("activations", sizes, layer={"C": 16}, outside={"C": 2, "V": 2})
    else:
        a_token = _part("activations", sizes, outside={"V": 2})
    width = AUTOCAST_BYTES if trainer.precision in (Precision.bf16, Precision.fp16) else FP32_BYTES
    factor = width * (trainer.batch_size // trainer.accumulate) * config.size.context_length
    return Part("activations", f"{width} B T ({a_token.formula})", factor * a_token.amount, factor * a_token.per_layer)


def total(parts: list[Part]) -> int:
    """The sum over all parts."""
    return sum(part.amount for part in parts)


def _known(config: Config) -> BigramConfig | TransformerConfig:
    if not has_formula(config):
        raise SettingsError(
            f"there is no formula for the model {config.model.name!r}",
            where="model",
            mend=f"those that are counted by formula: {', '.join(COUNTED)}",
        )
    assert isinstance(config.model, BigramConfig | TransformerConfig)
    return config.model


def _optimizer_state(config: Config) -> Terms | None:
    """Numbers that the optimizer keeps; None where it or, if shapes matter to it, the model is a plugin's."""
    optimizer = config.optimizer
    if optimizer.name in COPIES:
        return {"N": COPIES[optimizer.name]}
    if optimizer.name == SGDConfig.name:
        assert isinstance(optimizer, SGDConfig)
        return {"N": int(optimizer.momentum > 0)}
    if optimizer.name not in (MuonConfig.name, AdafactorConfig.name) or not has_formula(config):
        return None
    layer, outside = _matrices(_known(config))
    if optimizer.name == MuonConfig.name:
        # Two moments, and of hidden matrices a momentum alone.
        return _sum({"N": 2}, *({f"L {_area(rows, columns)}": -rows[0] * columns[0]} for rows, columns in layer))
    # A number for each row and column of a matrix, and for each number of all else.
    saved = [{_area(rows, columns): -rows[0] * columns[0]} for rows, columns in outside]
    saved += [{f"L {_area(rows, columns)}": -rows[0] * columns[0]} for rows, columns in layer]
    kept = [{symbol: factor} for matrix in outside for factor, symbol in matrix]
    kept += [{f"L {symbol}": factor} for matrix in layer for factor, symbol in matrix]
    return _sum({"N": 1}, *saved, *kept)


def _matrices(settings: BigramConfig | TransformerConfig) -> tuple[list[Matrix], list[Matrix]]:
    """The matrices of each layer, and those outside the layers."""
    if not isinstance(settings, TransformerConfig):
        return [], [((1, "V"), (1, "V"))]
    # Query, key and value; attention's projection; the two of the feed-forward.
    layer: list[Matrix] = [((rows, "C"), (columns, "C")) for rows, columns in ((3, 1), (1, 1), (4, 1), (1, 4))]
    n_tables = 1 + (not settings.tied_head)
    positions: list[Matrix] = [((1, "T"), (1, "C"))] if settings.positions is Positions.learned else []
    return layer, [*n_tables * [((1, "V"), (1, "C"))], *positions]


def _area(rows: tuple[int, str], columns: tuple[int, str]) -> str:
    return f"{rows[1]}^2" if rows[1] == columns[1] else f"{rows[1]} {columns[1]}"


def _sum(*terms: Terms) -> Terms:
    added: Terms = {}
    for product, factor in (pair for some in terms for pair in some.items()):
        added[product] = added.get(product, 0) + factor
    return added


def _sizes(config: Config, vocab_size: int) -> dict[str, int]:
    size = config.size
    return {"V": vocab_size, "C": size.d_model, "T": size.context_length, "L": size.n_layers}


def _part(name: str, sizes: dict[str, int], *, layer: Terms | None = None, outside: Terms | None = None) -> Part:
    """A part that has the terms of `layer` in every layer, and those of `outside` once."""
    of_layer = {product: factor for product, factor in (layer or {}).items() if factor}
    of_rest = {product: factor for product, factor in (outside or {}).items() if factor}
    written = []
    if len(of_layer) == 1:
        written.append(_in_words({f"L {product}": factor for product, factor in of_layer.items()}))
    elif of_layer:
        written.append(f"L ({_in_words(of_layer)})")
    if of_rest:
        written.append(_in_words(of_rest))
    per_layer = _value(of_layer, sizes)
    amount = (sizes["L"] * per_layer if of_layer else 0) + _value(of_rest, sizes)
    return Part(name, " + ".join(written) or "none", amount, per_layer)


def _in_words(terms: Terms) -> str:
    words = ""
    for product, factor in terms.items():
        words += (" - " if factor < 0 else " + ") + (product if abs(factor) == 1 else f"{abs(factor)} {product}")
    return words.removeprefix(" + ")


def _value(terms: Terms, sizes: dict[str, int]) -> int:
    return sum(
        factor * math.prod(_power(symbol, sizes) for symbol in product.split()) for product, factor in terms.items()
    )


def _power(symbol: str, sizes: dict[str, int]) -> int:
    base, _, exponent = symbol.partition("^")
    return sizes[base] ** int(exponent or 1)
