"""Parameters, FLOPs and shapes of the trained models other than the transformer, as formulas."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nanolm.config.model import BigramConfig, Cell, MlpConfig, ModelConfig, RnnConfig
from nanolm.config.run import Config
from nanolm.model.polynomial import ZERO, C, F, Polynomial, V, W

# Rows and columns of a weight matrix.
Matrix = tuple[Polynomial, Polynomial]


@dataclasses.dataclass(frozen=True)
class Amount:
    """A part of a model: its amount in every layer, plus what occurs once."""

    name: str
    per_layer: Polynomial = ZERO
    once: Polynomial = ZERO


@dataclasses.dataclass(frozen=True)
class Formulas:
    """The formulas of a model.

    Attributes:
        parameters: by part.
        flops: of the matrix products of a forward pass, per token.
        layer_matrices: weight matrices of every layer, as they are stored.
        hidden_matrices: other weight matrices between the embedding and the head.
        end_matrices: those of the embedding and the head.
        activations: values per token that are stored for the backward pass, without the loss.
        cache: values per sequence that generation stores.
    """

    parameters: tuple[Amount, ...]
    flops: tuple[Amount, ...]
    layer_matrices: tuple[Matrix, ...] = ()
    hidden_matrices: tuple[Matrix, ...] = ()
    end_matrices: tuple[Matrix, ...] = ()
    activations: Amount = Amount("activations")
    cache: Amount = Amount("state")


# Values per unit that a layer stores for the backward pass, measured on a CPU; those of an LSTM are oneDNN's workspace.
STORED_VALUES = {Cell.vanilla: 2, Cell.gru: 8, Cell.lstm: 17}


def formulas_of(config: Config) -> Formulas:
    """Return the formulas of a built-in model that is neither a transformer nor counted."""
    return FORMULAS[type(config.model)](config)


def _bigram(config: Config) -> Formulas:
    return Formulas(
        parameters=(Amount("table", once=V * V),),
        flops=(Amount("table"),),
        end_matrices=((V, V),),
    )


def _mlp(config: Config) -> Formulas:
    settings = config.model
    assert isinstance(settings, MlpConfig)
    n_hidden = 4 * C if config.size.d_ff is None else F
    hidden, head, direct = (n_hidden, W * C), (V, n_hidden), (V, W * C)
    return Formulas(
        parameters=(
            Amount("token embedding", once=V * C),
            Amount("hidden layer", once=_product(hidden) + n_hidden),
            Amount("direct connections", once=_product(direct) * settings.direct),
            Amount("head", once=_product(head) + V),
        ),
        flops=(
            Amount("hidden layer", once=2 * _product(hidden)),
            Amount("direct connections", once=2 * _product(direct) * settings.direct),
            Amount("head", once=2 * _product(head)),
        ),
        hidden_matrices=(hidden, direct) if settings.direct else (hidden,),
        end_matrices=((V, C), head),
        # The concatenated window and the hidden units, before and after dropout.
        activations=Amount("activations", once=W * C + (1 + 2 * (settings.dropout > 0)) * n_hidden),
        cache=Amount("window", once=W * C + -1 * C),
    )


def _rnn(config: Config) -> Formulas:
    settings = config.model
    assert isinstance(settings, RnnConfig)
    n_gates = settings.cell.n_gates
    # The matrices of the input and of the state.
    matrices = ((n_gates * C, C), (n_gates * C, C))
    weights = 2 * n_gates * (C * C)
    head = (V, C)
    return Formulas(
        parameters=(
            Amount("token embedding", once=V * C),
            Amount("recurrent layers", weights + 2 * n_gates * C),
            Amount("head", once=_product(head) + V),
        ),
        flops=(Amount("recurrent layers", 2 * weights), Amount("head", once=2 * _product(head))),
        layer_matrices=matrices,
        end_matrices=((V, C), head),
        activations=Amount(
            "activations",
            (STORED_VALUES[settings.cell] + 2 * (settings.dropout > 0)) * C,
            once=C,
        ),
        # An LSTM has two states.
        cache=Amount("state", (1 + (settings.cell is Cell.lstm)) * C),
    )


FORMULAS: dict[type[ModelConfig], Callable[[Config], Formulas]] = {
    BigramConfig: _bigram,
    MlpConfig: _mlp,
    RnnConfig: _rnn,
}


def _product(matrix: Matrix) -> Polynomial:
    rows, columns = matrix
    return rows * columns
