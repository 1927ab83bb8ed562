"""The parts of a model."""

from __future__ import annotations

import dataclasses
import enum
from typing import ClassVar

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import MODELS


class Positions(enum.Enum):
    """How a token knows where it stands.

    none: it does not, but for what its mask shows it.
    learned: a trained vector a position, added to the embedding (Radford et al. 2018).
    sinusoidal: fixed sines and cosines, added to the embedding (Vaswani et al. 2017, section 3.5).
    rotary: queries and keys are turned by their position (Su et al. 2021).
    alibi: scores fall with the distance, at a rate for each head (Press et al. 2022).
    """

    none = "none"
    learned = "learned"
    sinusoidal = "sinusoidal"
    rotary = "rotary"
    alibi = "alibi"


class AttentionKind(enum.Enum):
    """How a position weighs what it sees.

    softmax: by the product of its query and their keys (Vaswani et al. 2017, section 3.2.1).
    uniform: all alike: the plain mean, without queries, keys, values or heads.
    """

    softmax = "softmax"
    uniform = "uniform"


class Norm(enum.Enum):
    """What keeps the residual stream in range: nothing, LayerNorm with its weights, or RMSNorm without any."""

    none = "none"
    layer_norm = "layer_norm"
    rms_norm = "rms_norm"


class NormPlacement(enum.Enum):
    """Whether attention and the feed-forward are normalised as they read (GPT-2), or what they have joined (GPT)."""

    pre = "pre"
    post = "post"


class FeedForwardKind(enum.Enum):
    """What follows attention in a block.

    none: nothing.
    one_layer: width to width, then the activation.
    two_layers: to size.d_ff, the activation, and back (Vaswani et al. 2017, section 3.3).
    """

    none = "none"
    one_layer = "one_layer"
    two_layers = "two_layers"


class Activation(enum.Enum):
    """The non-linearity of the feed-forward.

    gelu_tanh: GELU in its tanh form, as GPT-2 has it (Hendrycks and Gimpel 2016).
    relu_squared: max(x, 0)^2 (So et al. 2021).
    swiglu: swish(x W) * (x U), a second matrix as its gate (Shazeer 2020).
    """

    relu = "relu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu_squared = "relu_squared"
    swiglu = "swiglu"


class Initialization(enum.Enum):
    """How the weights begin; biases begin at zero but under pytorch.

    gpt2: N(0, 0.02), projections into the residual stream divided by sqrt(2 n_layers).
    xavier: matrices and learned positions uniform in +-sqrt(6 / (inputs + outputs)), queries, keys and values each for
        itself; token embeddings N(0, 1) (Glorot and Bengio 2010).
    pytorch: as torch's modules draw them: U(+-1/sqrt(inputs)) with their biases, embeddings N(0, 1).
    zero_projections: projections into the residual stream and the head are zero, so that every block begins as the
        identity; other matrices uniform with variance 1 / inputs, embeddings N(0, 1).
    """

    gpt2 = "gpt2"
    xavier = "xavier"
    pytorch = "pytorch"
    zero_projections = "zero_projections"


class Smoothing(enum.Enum):
    """How an n-gram model gives probability to what it has not counted.

    add_k: `add_k` is added to every count (Jurafsky and Martin, Speech and Language Processing, 3.6).
    kneser_ney: interpolated Kneser-Ney; shorter contexts fill in for longer ones (Chen and Goodman 1999, section 2.7).
    """

    add_k = "add_k"
    kneser_ney = "kneser_ney"


@dataclasses.dataclass
class ModelConfig:
    """What every model has."""

    # Whether the mask means anything to it; one that sees the future is told of where it does.
    reads_mask: ClassVar[bool] = True

    name: str = MISSING


@dataclasses.dataclass
class BigramConfig(ModelConfig):
    """A V x V table of logits: the next token given this one."""

    reads_mask: ClassVar[bool] = False

    name: str = "bigram"


@dataclasses.dataclass
class NgramConfig(ModelConfig):
    """A counted table: the next token given the `order` - 1 before it. It has no steps to train."""

    reads_mask: ClassVar[bool] = False

    name: str = "ngram"
    order: int = bounded(3, ge=1, le=5)
    smoothing: Smoothing = Smoothing.kneser_ney
    # What add_k adds; kneser_ney finds its discounts in the counts.
    add_k: float = bounded(1.0, gt=0)


@dataclasses.dataclass
class TransformerConfig(ModelConfig):
    """The parts of the one transformer. As it stands here it is `model=gpt`, today's recipe."""

    name: str = "transformer"
    positions: Positions = Positions.rotary
    attention: AttentionKind = AttentionKind.softmax
    # Queries and keys are brought to unit mean square before they meet.
    qk_norm: bool = True
    # From the gathered values of all heads back to the stream; without it they are laid side by side.
    output_projection: bool = True
    feed_forward: FeedForwardKind = FeedForwardKind.two_layers
    activation: Activation = Activation.relu_squared
    # Each part adds to the stream; without it each replaces the stream.
    residual: bool = True
    norm: Norm = Norm.rms_norm
    norm_placement: NormPlacement = NormPlacement.pre
    # Right after the embedding.
    embedding_norm: bool = True
    # Before the head; null: where there are norms before the parts, which leave the stream itself as it grows.
    final_norm: bool | None = None
    bias: bool = False
    # Of queries, keys, values and the output projection; null: as `bias` says.
    attention_bias: bool | None = None
    tie_embeddings: bool = False
    # A number for each token, added to its logit.
    head_bias: bool = False
    # Logits are kept within +-c by c tanh(logits / c) (Gemma 2, Riviere et al. 2024, section 2); null: as they are.
    logit_softcap: float | None = bounded(None, gt=0, off="null leaves the logits as they are")
    initialization: Initialization = Initialization.zero_projections
    dropout: float = bounded(0.0, ge=0, lt=1, off="0 switches dropout off")
    # Of the embedding, of the weights of attention, and of what each part adds to the stream; null: as `dropout` says.
    embedding_dropout: float | None = bounded(None, ge=0, lt=1)
    attention_dropout: float | None = bounded(None, ge=0, lt=1)
    residual_dropout: float | None = bounded(None, ge=0, lt=1)

    @property
    def has_attention_bias(self) -> bool:
        """Whether attention's matrices have biases."""
        return self.bias if self.attention_bias is None else self.attention_bias

    @property
    def has_final_norm(self) -> bool:
        """Whether the stream is normalised before the head."""
        before = self.norm is not Norm.none and self.norm_placement is NormPlacement.pre
        return before if self.final_norm is None else self.final_norm

    @property
    def has_gate(self) -> bool:
        """Whether the feed-forward's first layer is two matrices."""
        return self.activation is Activation.swiglu

    def dropout_of(self, place: float | None) -> float:
        """The dropout of one of its places."""
        return self.dropout if place is None else place


declare(MODELS, BigramConfig, NgramConfig, TransformerConfig)
