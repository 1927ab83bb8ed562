"""How large a model is."""

from __future__ import annotations

import dataclasses

from nanolm.config.fields import bounded


@dataclasses.dataclass
class SizeConfig:
    """How large the model is. A bigram and an n-gram read only context_length."""

    n_layers: int = bounded(ge=0, le=100_000)
    n_heads: int = bounded(ge=1)
    d_model: int = bounded(ge=1)
    context_length: int = bounded(ge=1)
    # Width of a head's queries and keys, and of its values; null: d_model / n_heads.
    d_key: int | None = bounded(None, ge=1, off="null derives it from size.d_model")
    d_value: int | None = bounded(None, ge=1, off="null derives it from size.d_model")
    # Width inside the feed-forward; null: 4 d_model, and 8/3 d_model with a gate, which has as many weights.
    d_ff: int | None = bounded(None, ge=1, off="null derives it from size.d_model")

    @property
    def key_width(self) -> int:
        """Width of a head's queries and keys."""
        return self.d_model // self.n_heads if self.d_key is None else self.d_key

    @property
    def value_width(self) -> int:
        """Width of a head's values."""
        return self.d_model // self.n_heads if self.d_value is None else self.d_value

    def hidden_width(self, has_gate: bool) -> int:
        """Width inside the feed-forward."""
        if self.d_ff is not None:
            return self.d_ff
        return max(1, 8 * self.d_model // 3) if has_gate else 4 * self.d_model
