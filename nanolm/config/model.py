"""The parts of a model."""

from __future__ import annotations

import dataclasses
import enum

from omegaconf import MISSING

from nanolm.config.fields import bounded, declare
from nanolm.registry import MODELS


class Positions(enum.Enum):
    """How a token knows where it stands."""

    learned = "learned"
    rotary = "rotary"


class Norm(enum.Enum):
    """What keeps the residual stream in range: LayerNorm with its weights, or RMSNorm without any."""

    layer_norm = "layer_norm"
    rms_norm = "rms_norm"


class Activation(enum.Enum):
    """The non-linearity between the two layers of the feed-forward."""

    gelu_tanh = "gelu_tanh"
    relu_squared = "relu_squared"


class Initialization(enum.Enum):
    """How the weights begin.

    gpt2: N(0, 0.02), projections into the residual stream divided by sqrt(2 n_layers), biases zero.
    zero_projections: those projections and the head are zero, so that every block begins as the identity.
    """

    gpt2 = "gpt2"
    zero_projections = "zero_projections"


@dataclasses.dataclass
class ModelConfig:
    """What every model has."""

    name: str = MISSING


@dataclasses.dataclass
class BigramConfig(ModelConfig):
    """A V x V table of logits: the next token given this one."""

    name: str = "bigram"


@dataclasses.dataclass
class TransformerConfig(ModelConfig):
    """The parts of the one transformer. As it stands here it is `model=gpt`, today's recipe."""

    name: str = "transformer"
    positions: Positions = Positions.rotary
    norm: Norm = Norm.rms_norm
    activation: Activation = Activation.relu_squared
    initialization: Initialization = Initialization.zero_projections
    qk_norm: bool = True
    bias: bool = False
    # Of attention's four projections; null: as `bias` says.
    attention_bias: bool | None = None
    tied_head: bool = False
    # A number for each token, added to its logit.
    head_bias: bool = False
    dropout: float = bounded(0.0, ge=0, lt=1)


declare(MODELS, BigramConfig, TransformerConfig)
