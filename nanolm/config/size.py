"""How large a model is."""

from __future__ import annotations

import dataclasses

from nanolm.config.fields import bounded


@dataclasses.dataclass
class SizeConfig:
    """How large the model is. A bigram reads only context_length."""

    n_layers: int = bounded(ge=1)
    n_heads: int = bounded(ge=1)
    d_model: int = bounded(ge=1)
    context_length: int = bounded(ge=1)
