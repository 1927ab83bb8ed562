"""Models of Hugging Face transformers with the weights of nanolm's, as the oracle of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanolm.config.run import Config
from nanolm.interop.architectures import find_architecture
from nanolm.interop.tensors import ENTRIES, export_tensors
from nanolm.model.build import build
from tests.helpers import make_config, randomize_weights

VOCAB_SIZE = 37
# Overrides of a model small enough for a test, in which no two widths are equal.
SMALL_SIZE = ("size.n_layers=2", "size.n_heads=4", "size.d_model=32", "size.context_length=20")


def small_model(*overrides: str) -> tuple[Config, nn.Module]:
    """Build a small model with random weights, none of them zero."""
    config = make_config(*SMALL_SIZE, *overrides)
    model = build(config, VOCAB_SIZE).eval()
    randomize_weights(model)
    return config, model


def transformers_model(config: Config, model: nn.Module) -> Any:
    """Build the architecture of transformers that represents a model, with its weights."""
    import transformers

    architecture = find_architecture(config)
    kind = getattr(transformers, architecture.name)
    other = kind(kind.config_class(**architecture.to_json(config, VOCAB_SIZE))).eval()
    load_tensors(other, export_tensors(ENTRIES[architecture.name](config, VOCAB_SIZE), model.state_dict()))
    return other


def load_tensors(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Load all weights of a model of transformers; a tied head is not among them."""
    found = model.load_state_dict(tensors, strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys in ([], ["lm_head.weight"] if model.config.tie_word_embeddings else [])


@torch.no_grad()
def largest_difference(model: nn.Module, other: Any) -> float:
    """Return the largest difference of the logits at any position, with and without caches of keys and values."""
    from transformers import DynamicCache

    tokens_BxT = torch.randint(0, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(1))
    logits_BxTxV = model(tokens_BxT)
    parts = tokens_BxT.split([7, 1, 5, 1, 6], dim=1)
    cache, other_cache = model.make_cache(), DynamicCache()
    cached = torch.cat([model(part, cache=cache) for part in parts], dim=1)
    other_cached = torch.cat([other(part, cache=other_cache, use_cache=True).logits for part in parts], dim=1)
    assert other_cache.get_seq_length() == 20
    found = [other(tokens_BxT).logits, cached, other_cached]
    return max(float((logits_BxTxV - other_BxTxV).abs().max()) for other_BxTxV in found)


def open_exported(folder: Path) -> tuple[Any, Any]:
    """Open an exported folder with transformers, as a user does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
