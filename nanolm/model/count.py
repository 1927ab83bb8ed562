"""Parameters, FLOPs and memory by formula, from the settings alone.

What is printed of a formula is what is computed: both come from the same terms. In them V is the vocabulary, C the
width of the model, T the context, L the layers, N the parameters and B the sequences that are in flight at once. Widths
that are set apart from C: n heads with keys of k and values of v, and h inside the feed-forward.
"""

from __future__ import annotations

import dataclasses
import math

from nanolm.config.model import (
    Activation,
    AttentionKind,
    BigramConfig,
    FeedForwardKind,
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
from nanolm.errors import SettingsError

# How often each product of sizes counts: {"C^2": 4, "C": 4} is 4 C^2 + 4 C.
Terms = dict[str, int]

# Rows and columns of a matrix: ({"C": 3}, {"C": 1}) is 3 C x C.
Matrix = tuple[Terms, Terms]

# Models built in, whose parts are known; one registered by a plugin has another name.
COUNTED = {schema.name: schema for schema in (BigramConfig, TransformerConfig)}

# Numbers that an optimizer keeps for each parameter.
COPIES = {AdamConfig.name: 2, AdamWConfig.name: 2, LionConfig.name: 1, ScheduleFreeConfig.name: 2}

# Temporary copies of the parameters that a step of an optimizer makes; Adam, AdamW and SGD are fused.
TEMPORARY_COPIES = {LionConfig.name: 1, ScheduleFreeConfig.name: 2, MuonConfig.name: 2}

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
    in_a_norm = {Norm.none: 0, Norm.rms_norm: 0, Norm.layer_norm: 1 + settings.bias}[settings.norm]
    n_inner_norms = 1 + (settings.feed_forward is not FeedForwardKind.none)
    n_outer_norms = settings.embedding_norm + settings.has_final_norm
    return [
        _part("token embedding", sizes, outside={"V C": 1}),
        _part("positions", sizes, outside={"T C": int(settings.positions is Positions.learned)}),
        _part("attention", sizes, layer=_attention_weights(settings) | _attention_biases(settings)),
        _part("feed-forward", sizes, layer=_feed_forward_weights(settings) | _feed_forward_biases(settings)),
        _part("norms", sizes, layer={"C": n_inner_norms * in_a_norm}, outside={"C": n_outer_norms * in_a_norm}),
        _part("head", sizes, outside={"V C": int(not settings.tie_embeddings), "V": int(settings.head_bias)}),
    ]


def flops_per_token(config: Config, vocab_size: int) -> list[Part]:
    """Floating-point operations of a forward pass for each token of a full context.

    Two for each weight of a matrix product (Kaplan et al. 2020, section 2.1), those of the head with them, tied or not;
    and 4 T C (2 T n k + 2 T n v) a layer for the scores and the gathering of values, as if every position saw all T,
    whatever the mask (Chowdhery et al. 2022, appendix B; Kaplan's table 1 has half of it); 2 T C for a plain mean.
    Looking up embeddings, norms, biases, activations, softmax and the loss are not counted.

    Raises:
        SettingsError: the model is a plugin's.
    """
    sizes = _sizes(config, vocab_size)
    settings = _known(config)
    if not isinstance(settings, TransformerConfig):
        return [_part("table", sizes)]
    is_uniform = settings.attention is AttentionKind.uniform
    return [
        _part("attention projections", sizes, layer=_twice(_attention_weights(settings))),
        _part("attention over T", sizes, layer={"T C": 2} if is_uniform else {"T n k": 2, "T n v": 2}),
        _part("feed-forward", sizes, layer=_twice(_feed_forward_weights(settings))),
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


def activation_memory(config: Config, vocab_size: int, number_format: str | None = None) -> Part:
    """Estimate the bytes that are live when the backward pass begins: activations at the full context, and the loss.

    Kept per token and layer, in fp32: the inputs of both norms (the residual stream); in the number format of autocast:
    the inputs of the linear layers, queries, keys and values, rotated or normalised copies of queries and keys, the
    output of attention, and the inside of the feed-forward. The loss holds its log-probabilities and two gradients of
    them, each V in fp32; a softcap holds one more. Attention is assumed to be a fused kernel, which keeps no T x T
    scores. Compare Korthikanti et al. 2022, section 4.1.

    Sequences in flight (B) are trainer.batch_size / trainer.gradient_accumulation.

    Args:
        number_format: fp32, tf32, bf16 or fp16; None is that of trainer.precision, where auto is fp32.

    Raises:
        SettingsError: the model is a plugin's.
    """
    trainer = config.trainer
    sizes = _sizes(config, vocab_size)
    settings = _known(config)
    width = _autocast_bytes(trainer.precision.name if number_format is None else number_format)
    if isinstance(settings, TransformerConfig):
        of_ends = {"C": FP32_BYTES * (1 + settings.embedding_norm) + width}
        of_loss = {"V": FP32_BYTES * (3 + (settings.logit_softcap is not None))}
        a_token = _part("activations", sizes, layer=_kept_bytes(settings, width), outside=of_ends | of_loss)
    else:
        a_token = _part("activations", sizes, outside={"V": 3 * FP32_BYTES})
    factor = trainer.batch_size // trainer.gradient_accumulation * config.size.context_length
    return Part("activations", f"B T ({a_token.formula})", factor * a_token.amount, factor * a_token.per_layer)


def peak_memory(config: Config, n_parameters: int, vocab_size: int, number_format: str | None = None) -> int:
    """Estimate the bytes that a training step holds at its peak, in eager mode.

    The peak is the beginning of a backward pass, when the activations are live and, under autocast, half-precision
    copies of the weights; gradients are live beside them from the second micro-batch on. With few activations it is the
    optimizer's step, whose temporary tensors are counted.

    Raises:
        SettingsError: the model is a plugin's.
    """
    parts = {part.name: part.amount for part in memory(config, n_parameters, vocab_size)}
    format_name = config.trainer.precision.name if number_format is None else number_format
    activations = activation_memory(config, vocab_size, format_name).amount
    if _autocast_bytes(format_name) == AUTOCAST_BYTES:
        activations += AUTOCAST_BYTES * n_parameters
    if config.trainer.gradient_accumulation > 1:
        activations += parts["gradients"]
    temporary = TEMPORARY_COPIES.get(config.optimizer.name, 0) * FP32_BYTES * n_parameters
    averages = 0 if config.trainer.ema_decay is None else parts["weights"]
    held = parts["weights"] + parts.get("optimizer", 0) + averages
    return held + max(activations, parts["gradients"] + temporary)


def total(parts: list[Part]) -> int:
    """The sum over all parts."""
    return sum(part.amount for part in parts)


def _known(config: Config) -> BigramConfig | TransformerConfig:
    if not has_formula(config):
        raise SettingsError(
            f"there is no formula for the model {config.model.name!r}",
            where="model",
            hint=f"those that are counted by formula: {', '.join(COUNTED)}",
        )
    assert isinstance(config.model, BigramConfig | TransformerConfig)
    return config.model


def _attention_weights(settings: TransformerConfig) -> Terms:
    """Numbers in the matrices of one layer's attention."""
    if settings.attention is AttentionKind.uniform:
        return {"C^2": int(settings.output_projection)}
    return {"C n k": 2, "C n v": 1 + settings.output_projection}


def _attention_biases(settings: TransformerConfig) -> Terms:
    if not settings.has_attention_bias:
        return {}
    own = {} if settings.attention is AttentionKind.uniform else {"n k": 2, "n v": 1}
    return own | {"C": int(settings.output_projection)}


def _feed_forward_weights(settings: TransformerConfig) -> Terms:
    """Numbers in the matrices of one layer's feed-forward; a gate is one more as large as the first."""
    n_in = 1 + settings.has_gate
    return {
        FeedForwardKind.none: {},
        FeedForwardKind.one_layer: {"C^2": n_in},
        FeedForwardKind.two_layers: {"C h": n_in + 1},
    }[settings.feed_forward]


def _feed_forward_biases(settings: TransformerConfig) -> Terms:
    n_in = 1 + settings.has_gate
    biases = {
        FeedForwardKind.none: {},
        FeedForwardKind.one_layer: {"C": n_in},
        FeedForwardKind.two_layers: {"h": n_in, "C": 1},
    }[settings.feed_forward]
    return {product: factor * settings.bias for product, factor in biases.items()}


def _autocast_bytes(number_format: str) -> int:
    """Bytes of a number that a linear layer computes with."""
    return AUTOCAST_BYTES if number_format in (Precision.bf16.name, Precision.fp16.name) else FP32_BYTES


def _kept_bytes(settings: TransformerConfig, width: int) -> Terms:
    """Bytes per token that one layer keeps for the backward pass.

    Args:
        width: bytes of a number under autocast.
    """
    has_norm, n_in = settings.norm is not Norm.none, 1 + settings.has_gate
    is_uniform = settings.attention is AttentionKind.uniform
    n_sublayers = 1 + (settings.feed_forward is not FeedForwardKind.none)
    dropped = 1 if settings.dropout_of(settings.residual_dropout) else 0
    kept = {"C": n_sublayers * (FP32_BYTES * has_norm + width + dropped)}
    if is_uniform:
        kept = _sum(kept, {"C": width})
    else:
        is_copied = settings.qk_norm or settings.positions is Positions.rotary
        keys = 2 * width * (1 + is_copied)
        # Autocast computes the norm of queries and keys in fp32.
        keys += 2 * FP32_BYTES if settings.qk_norm and width < FP32_BYTES else 0
        kept = _sum(kept, {"n k": keys, "n v": width * (2 + is_copied)})
    # An activation keeps its input, or its output where its gradient needs that; the next layer keeps its own input.
    n_inside = {Activation.relu: 1, Activation.swiglu: 4}.get(settings.activation, 2)
    inside = {
        FeedForwardKind.none: {},
        FeedForwardKind.one_layer: {"C": n_in},
        FeedForwardKind.two_layers: {"h": n_inside},
    }
    return _sum(kept, _times(inside[settings.feed_forward], width))


def _times(terms: Terms, number: int) -> Terms:
    return {product: number * factor for product, factor in terms.items()}


def _twice(terms: Terms) -> Terms:
    """A multiplication and an addition for each weight."""
    return _times(terms, 2)


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
    settings = _known(config)
    if optimizer.name == MuonConfig.name:
        # Two moments, and of hidden matrices a momentum alone.
        hidden = [_of_layers(_area(*matrix)) for matrix in _layer_matrices(settings)]
        return _sum({"N": 2}, *(_times(area, -1) for area in hidden))
    # A number for each row and column of a matrix, and for each number of all else.
    matrices = _layer_matrices(settings)
    areas = [_of_layers(_area(*matrix)) for matrix in matrices] + [_area(*matrix) for matrix in _tables(settings)]
    sides = [_of_layers(side) for matrix in matrices for side in matrix]
    sides += [side for matrix in _tables(settings) for side in matrix]
    return _sum({"N": 1}, *(_times(area, -1) for area in areas), *sides)


def _layer_matrices(settings: BigramConfig | TransformerConfig) -> list[Matrix]:
    """The matrices of one layer, as they are stored."""
    if not isinstance(settings, TransformerConfig):
        return []
    is_uniform, n_in = settings.attention is AttentionKind.uniform, 1 + settings.has_gate
    matrices: list[Matrix] = [] if is_uniform else [({"n k": 2, "n v": 1}, {"C": 1})]
    if settings.output_projection:
        matrices.append(({"C": 1}, {"C": 1} if is_uniform else {"n v": 1}))
    matrices += {
        FeedForwardKind.none: [],
        FeedForwardKind.one_layer: [({"C": n_in}, {"C": 1})],
        FeedForwardKind.two_layers: [({"h": n_in}, {"C": 1}), ({"C": 1}, {"h": 1})],
    }[settings.feed_forward]
    return matrices


def _tables(settings: BigramConfig | TransformerConfig) -> list[Matrix]:
    """The matrices outside the layers."""
    if not isinstance(settings, TransformerConfig):
        return [({"V": 1}, {"V": 1})]
    tables = (1 + (not settings.tie_embeddings)) * [({"V": 1}, {"C": 1})]
    return [*tables, ({"T": 1}, {"C": 1})] if settings.positions is Positions.learned else tables


def _area(rows: Terms, columns: Terms) -> Terms:
    return _sum(*({f"{row} {column}": a * b} for row, a in rows.items() for column, b in columns.items()))


def _of_layers(terms: Terms) -> Terms:
    return {f"L {product}": factor for product, factor in terms.items()}


def _sum(*terms: Terms) -> Terms:
    added: Terms = {}
    for product, factor in (pair for some in terms for pair in some.items()):
        added[product] = added.get(product, 0) + factor
    return added


def _sizes(config: Config, vocab_size: int) -> dict[str, int]:
    """What the letters stand for; widths that are left to C have no letter of their own."""
    size = config.size
    sizes = {"V": vocab_size, "C": size.d_model, "T": size.context_length, "L": size.n_layers, "n": size.n_heads}
    if size.d_key is not None:
        sizes["k"] = size.d_key
    if size.d_value is not None:
        sizes["v"] = size.d_value
    has_gate = isinstance(config.model, TransformerConfig) and config.model.has_gate
    if size.d_ff is not None or has_gate:
        sizes["h"] = size.hidden_width(has_gate)
    return sizes


def _in_letters(terms: Terms, sizes: dict[str, int]) -> Terms:
    """With C for n k and n v, and 4 C for h, where those are left to C."""
    found: Terms = {}
    for product, factor in terms.items():
        letters = [letter for word in product.split() for letter in [word[0]] * int(word[2:] or 1)]
        for width in ("k", "v"):
            if width in letters and width not in sizes:
                letters.remove("n")
                letters[letters.index(width)] = "C"
        if "h" in letters and "h" not in sizes:
            letters[letters.index("h")] = "C"
            factor *= 4
        powers = {letter: letters.count(letter) for letter in sorted(letters, key="NVTLCnkvh".index)}
        name = " ".join(letter if power == 1 else f"{letter}^{power}" for letter, power in powers.items())
        found[name] = found.get(name, 0) + factor
    return {product: factor for product, factor in found.items() if factor}


def _part(name: str, sizes: dict[str, int], *, layer: Terms | None = None, outside: Terms | None = None) -> Part:
    """A part that has the terms of `layer` in every layer, and those of `outside` once."""
    of_layer, of_rest = _in_letters(layer or {}, sizes), _in_letters(outside or {}, sizes)
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
