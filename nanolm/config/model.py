"""Model architectures: bigram, n-gram, MLP, recurrent networks and transformer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from nanolm.config.fields import MISSING, Choice, declare, setting
from nanolm.registry import MODELS


class Positions(Choice):
    """Positional encodings."""

    none = "none", "No positional encoding; only the mask orders the positions."
    learned = "learned", "A learned vector per position, added to the embedding (Radford et al. 2018)."
    sinusoidal = "sinusoidal", "Fixed sines and cosines, added to the embedding (Vaswani et al. 2017, section 3.5)."
    rotary = "rotary", "Queries and keys are rotated by an angle proportional to the position (Su et al. 2021)."
    alibi = "alibi", "A bias on the scores, linear in the distance, with a slope per head (Press et al. 2022)."


class AttentionKind(Choice):
    """Kinds of attention."""

    softmax = "softmax", "Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1)."
    uniform = "uniform", "The mean of all visible positions, without queries, keys, values or heads."


class Norm(Choice):
    """Normalization layers."""

    none = "none", "No normalization."
    layer_norm = "layer_norm", "LayerNorm with weights."
    rms_norm = "rms_norm", "RMSNorm, without weights unless norm_weight is true (Zhang and Sennrich 2019)."


class NormPlacement(Choice):
    """Placements of normalization layers."""

    pre = "pre", "Before attention and the feed-forward (GPT-2)."
    post = "post", "After each residual addition (GPT-1)."


class FeedForwardKind(Choice):
    """Kinds of feed-forward layers."""

    none = "none", "No feed-forward."
    one_layer = "one_layer", "One linear layer of width d_model, then the activation."
    two_layers = "two_layers", "Linear to size.d_ff, activation, linear back (Vaswani et al. 2017, section 3.3)."


class Activation(Choice):
    """Activation functions of the feed-forward."""

    relu = "relu", "max(x, 0)."
    gelu = "gelu", "Exact GELU (Hendrycks and Gimpel 2016)."
    gelu_tanh = "gelu_tanh", "GELU in its tanh approximation, as in GPT-2."
    relu_squared = "relu_squared", "max(x, 0)^2 (So et al. 2021)."
    swiglu = "swiglu", "swish(x W) * (x U), gated by a second matrix (Shazeer 2020)."


class Initialization(Choice):
    """Weight initializations. Biases start at zero, except with pytorch."""

    gpt2 = "gpt2", "N(0, 0.02); projections into the residual stream are divided by sqrt(2 n_layers)."
    xavier = (
        "xavier",
        "Matrices and learned positions U(+-sqrt(6 / (inputs + outputs))), with queries, keys and values as separate "
        "matrices; token embeddings N(0, 1) (Glorot and Bengio 2010).",
    )
    pytorch = "pytorch", "PyTorch's defaults: U(+-1/sqrt(inputs)), biases too; embeddings N(0, 1)."
    zero_projections = (
        "zero_projections",
        "Projections into the residual stream and the head are zero, so that every block starts as the identity; "
        "other matrices are uniform with variance 1 / inputs, embeddings N(0, 1).",
    )


class Smoothing(Choice):
    """Smoothing methods of an n-gram model, for n-grams with few or no counts."""

    add_k = "add_k", "`add_k` is added to every count (Jurafsky and Martin, Speech and Language Processing, 3.6)."
    kneser_ney = "kneser_ney", "Interpolated Kneser-Ney (Chen and Goodman 1999, section 2.7)."


class Cell(Choice):
    """Cells of a recurrent network."""

    vanilla = "vanilla", "h = tanh(W x + U h) (Elman 1990; Mikolov et al. 2010)."
    gru = "gru", "Gated recurrent unit, with three matrices of each kind (Cho et al. 2014)."
    lstm = "lstm", "Long short-term memory, with four (Hochreiter and Schmidhuber 1997; Gers et al. 2000)."

    @property
    def n_gates(self) -> int:
        """Number of matrices that are stacked in a weight of the cell."""
        return {Cell.vanilla: 1, Cell.gru: 3, Cell.lstm: 4}[self]


@dataclasses.dataclass
class ModelConfig:
    """Settings of every model."""

    # Whether the model uses the attention mask; a warning about non-causal masks depends on it.
    reads_mask: ClassVar[bool] = True
    # Whether size.d_model is the width of the model; optimizer.lr_scaling depends on it.
    has_width: ClassVar[bool] = False

    name: str = MISSING


@dataclasses.dataclass
class BigramConfig(ModelConfig):
    """A V x V table of logits: predicts the next token from the current one."""

    reads_mask: ClassVar[bool] = False

    name: str = "bigram"


@dataclasses.dataclass
class NgramConfig(ModelConfig):
    """An n-gram model, fitted by counting in one pass: predicts a token from the `order` - 1 tokens before it."""

    reads_mask: ClassVar[bool] = False

    name: str = "ngram"
    order: int = setting(3, doc="Length of the n-grams, in tokens.", ge=1, le=5)
    smoothing: Smoothing = setting(Smoothing.kneser_ney, doc="Smoothing method.")
    add_k: float = setting(1.0, doc="Added to every count by smoothing=add_k; Kneser-Ney ignores it.", gt=0)


@dataclasses.dataclass
class MlpConfig(ModelConfig):
    """A neural probabilistic language model (Bengio et al. 2003).

    The embeddings of the last `window` tokens are concatenated and go through one hidden layer of size.d_ff tanh units.
    """

    reads_mask: ClassVar[bool] = False
    has_width: ClassVar[bool] = True

    name: str = "mlp"
    window: int = setting(
        8,
        doc="Number of tokens that a prediction sees, the current one included: n - 1 in the paper. Before the "
        "beginning of a row they are zero vectors.",
        ge=1,
    )
    direct: bool = setting(False, doc="Connect the embeddings directly to the logits, too (the matrix W of the paper).")
    dropout: float = setting(0.0, doc="Dropout probability of the hidden units.", ge=0, lt=1, off="0 disables dropout")


@dataclasses.dataclass
class RnnConfig(ModelConfig):
    """A recurrent network of size.n_layers layers of width size.d_model; its state is zero at the start of a row."""

    reads_mask: ClassVar[bool] = False
    has_width: ClassVar[bool] = True

    name: str = "rnn"
    cell: Cell = setting(Cell.lstm, doc="Recurrent cell.")
    dropout: float = setting(
        0.0,
        doc="Dropout probability of the embedding and of the output of every layer, but not of the state (Zaremba et "
        "al. 2014).",
        ge=0,
        lt=1,
        off="0 disables dropout",
    )


# The linear layers that model.lora.targets can name, with their paths in a block of the transformer.
LORA_TARGETS = {
    "query_key_value": "attention.query_key_value",
    "projection": "attention.projection",
    "feed_forward_expansion": "feed_forward.expansion",
    "feed_forward_projection": "feed_forward.projection",
}


@dataclasses.dataclass
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al. 2021): W + (alpha / rank) B A, where W is frozen and A and B are trained."""

    rank: int | None = setting(
        None,
        doc="Rank of the adapters. null: no adapters, all weights are trained.",
        ge=1,
        off="null trains all weights",
    )
    alpha: float = setting(16.0, doc="The adapters' output is multiplied by alpha / rank.", gt=0)
    targets: list[str] = setting(
        default_factory=lambda: ["query_key_value", "projection"],
        doc="Linear layers of every block that have adapters: query_key_value and projection of attention, "
        "feed_forward_expansion, feed_forward_projection.",
    )
    dropout: float = setting(
        0.0, doc="Dropout of the adapters' input.", ge=0, lt=1, off="0 disables dropout of the adapters' input"
    )


@dataclasses.dataclass
class NgramMixConfig:
    """Counted n-grams whose log-probabilities are added to the logits of the transformer, with trained weights."""

    order: int | None = setting(
        None,
        doc="Length of the n-grams, in tokens. They are counted once, before the first step, on the training text, "
        "whose tokens then count as seen. null: no n-grams.",
        ge=1,
        le=8,
        off="null leaves out the n-grams",
    )


def _dropout(place: str) -> float | None:
    return setting(None, doc=f"Dropout of {place}. null: the value of `dropout`.", ge=0, lt=1)


@dataclasses.dataclass
class TransformerConfig(ModelConfig):
    """A decoder-only transformer. Its defaults are model=gpt, a current recipe."""

    has_width: ClassVar[bool] = True

    name: str = "transformer"
    positions: Positions = setting(Positions.rotary, doc="Positional encoding.")
    rotary_base: float = setting(
        10_000.0,
        doc="Base of the angles of rotary positions: the slowest pair of dimensions completes a cycle in about 2 pi "
        "rotary_base positions.",
        gt=1,
    )
    embedding_convolution: int | None = setting(
        None,
        doc="Number of tokens that a causal convolution of the embeddings reads, with weights per channel: a position "
        "then sees the tokens just before it without attention (So et al. 2021; Allen-Zhu 2025). null: none.",
        ge=2,
        le=64,
        off="null leaves the convolution out",
    )
    sublayer_convolution: int | None = setting(
        None,
        doc="Number of positions that a causal convolution of the inputs of attention and feed-forward reads, with "
        "weights per channel (Allen-Zhu 2025). null: none.",
        ge=2,
        le=64,
        off="null leaves the convolutions out",
    )
    attention: AttentionKind = setting(AttentionKind.softmax, doc="Kind of attention.")
    qk_norm: bool = setting(True, doc="Normalize queries and keys to unit mean square before their dot product.")
    output_projection: bool = setting(
        True, doc="Project the concatenated heads back to d_model; if false, they are the output of attention."
    )
    feed_forward: FeedForwardKind = setting(FeedForwardKind.two_layers, doc="Kind of feed-forward.")
    activation: Activation = setting(Activation.relu_squared, doc="Activation of the feed-forward.")
    residual: bool = setting(
        True, doc="Residual connections around attention and feed-forward; if false, each replaces its input."
    )
    norm: Norm = setting(Norm.rms_norm, doc="Normalization layer.")
    norm_weight: bool = setting(False, doc="Learn a scale per channel in RMSNorm; LayerNorm always has one.")
    norm_eps: float | None = setting(
        None,
        doc="Added to the mean square before its root is taken, in QK-norm too. null: 1e-5 in LayerNorm, the machine "
        "epsilon in RMSNorm.",
        gt=0,
        lt=1,
        off="null takes the default",
    )
    norm_placement: NormPlacement = setting(NormPlacement.pre, doc="Placement of the normalization layers.")
    embedding_norm: bool = setting(True, doc="Normalize the embedding before the first block.")
    final_norm: bool | None = setting(
        None, doc="Normalize before the head. null: true with norm_placement=pre and a norm, else false."
    )
    bias: bool = setting(False, doc="Biases in linear and normalization layers.")
    attention_bias: bool | None = setting(
        None, doc="Biases of queries, keys, values and the output projection. null: the value of `bias`."
    )
    tie_embeddings: bool = setting(False, doc="Share the weights of the token embedding and the head.")
    head_bias: bool = setting(False, doc="Add a bias to the logits.")
    logit_softcap: float | None = setting(
        None,
        doc="Bound the logits to +-c by c tanh(logits / c) (Gemma 2, Riviere et al. 2024, section 2). null: no bound.",
        gt=0,
        off="null leaves the logits unbounded",
    )
    initialization: Initialization = setting(Initialization.zero_projections, doc="Weight initialization.")
    dropout: float = setting(0.0, doc="Dropout probability.", ge=0, lt=1, off="0 disables dropout")
    embedding_dropout: float | None = _dropout("the embedding")
    attention_dropout: float | None = _dropout("the attention weights")
    residual_dropout: float | None = _dropout("the outputs of attention and feed-forward")
    lora: LoraConfig = setting(
        default_factory=LoraConfig,
        doc="Low-rank adapters, for a fork that keeps its parent's weights frozen (Hu et al. 2021).",
        switch="rank",
    )

    ngram_mix: NgramMixConfig = setting(
        default_factory=NgramMixConfig,
        doc="Train the transformer on what counted n-grams (Kneser-Ney) do not predict.",
        switch="order",
    )

    @property
    def has_ngram_mix(self) -> bool:
        """Whether n-grams are mixed into the logits."""
        return self.ngram_mix.order is not None

    @property
    def has_attention_bias(self) -> bool:
        """Whether the matrices of attention have biases."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_final_norm(self) -> bool:
        """Whether there is a normalization before the head."""
        before = self.norm is not Norm.none and self.norm_placement is NormPlacement.pre
        return before if self.final_norm is None else self.final_norm

    @property
    def has_gate(self) -> bool:
        """Whether the feed-forward is gated: its first layer has two matrices."""
        return self.activation is Activation.swiglu

    @property
    def has_adapters(self) -> bool:
        """Whether only low-rank adapters are trained."""
        return self.lora.rank is not None

    def dropout_of(self, place: float | None) -> float:
        """Return the dropout of one place, where None stands for the common value."""
        return self.dropout if place is None else place


declare(MODELS, ModelConfig)
