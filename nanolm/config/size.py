"""Model sizes."""

from __future__ import annotations

import dataclasses

from nanolm.config.fields import Trait, setting

_DERIVED = "null derives it from size.d_model"


@dataclasses.dataclass
class SizeConfig:
    """Size of the model.

    Bigram and n-gram models use only context_length, model=mlp also d_model and d_ff, and model=rnn d_model and
    n_layers.
    """

    n_layers: int = setting(doc="Number of blocks.", ge=0, le=100_000)
    n_heads: int = setting(doc="Number of attention heads per block.", ge=1)
    d_model: int = setting(doc="Width of the residual stream.", ge=1)
    context_length: int = setting(doc="Maximum number of tokens that the model sees.", traits=(Trait.batches,), ge=1)
    n_kv_heads: int | None = setting(
        None,
        doc="Number of heads of keys and values, each shared by n_heads / n_kv_heads query heads (grouped-query "
        "attention, Ainslie et al. 2023). null: n_heads.",
        ge=1,
        off="null gives each query head its own keys and values",
    )
    d_key: int | None = setting(
        None, doc="Width of the queries and keys of a head. null: d_model / n_heads.", ge=1, off=_DERIVED
    )
    d_value: int | None = setting(
        None, doc="Width of the values of a head. null: d_model / n_heads.", ge=1, off=_DERIVED
    )
    d_ff: int | None = setting(
        None,
        doc="Hidden width of the feed-forward. null: 4 d_model, or 8/3 d_model with a gated activation, which gives as "
        "many weights.",
        ge=1,
        off=_DERIVED,
    )

    @property
    def key_width(self) -> int:
        """Width of the queries and keys of a head."""
        return self.d_model // self.n_heads if self.d_key is None else self.d_key

    @property
    def value_width(self) -> int:
        """Width of the values of a head."""
        return self.d_model // self.n_heads if self.d_value is None else self.d_value

    @property
    def key_value_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    def hidden_width(self, has_gate: bool) -> int:
        """Return the hidden width of the feed-forward."""
        if self.d_ff is not None:
            return self.d_ff
        return max(1, 8 * self.d_model // 3) if has_gate else 4 * self.d_model
