"""Generate text from a prompt."""

from __future__ import annotations

import numpy as np
import torch

from nanolm import option_types
from nanolm.errors import SettingsError
from nanolm.inference.load import Loaded
from nanolm.model.sampling import sample
from nanolm.training.memory import translate_memory_errors


def generate(
    loaded: Loaded,
    prompt: str,
    *,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stride: int | None = None,
    use_cache: bool = True,
) -> str:
    """Generate text; the other arguments are those of `nanolm.model.sampling.sample`.

    Returns:
        The prompt and its continuation.

    Raises:
        SettingsError: an argument is out of range, or the prompt is empty.
        TokenizerError: the prompt has characters that are not in the vocabulary.
    """
    if not prompt:
        raise SettingsError("the prompt is empty", where="--prompt", hint="give it at least one character")
    context_length = loaded.config.size.context_length
    stride_hint = f"from 1 to the context length, {context_length}"
    for option, value, is_valid, hint in (
        ("--max-new-tokens", max_new_tokens, max_new_tokens >= 1, "1 or more"),
        ("--temperature", temperature, 0 <= temperature < float("inf"), "0 (greedy decoding) or more"),
        ("--top-k", top_k, top_k is None or top_k >= 1, "1 or more"),
        ("--seed", seed, 0 <= seed <= option_types.LARGEST, option_types.SEED.hint),
        ("--stride", stride, stride is None or 1 <= stride <= context_length, stride_hint),
    ):
        if not is_valid:
            raise SettingsError(f"{option} is {value}", where=option, hint=hint)
    tokens = loaded.tokenizer.encode(prompt)
    if not len(tokens):
        raise SettingsError("the prompt has no tokens", where="--prompt", hint="give it at least one word")
    with translate_memory_errors(loaded.config):
        written = sample(
            loaded.model,
            torch.from_numpy(tokens.astype(np.int64)).to(loaded.device),
            max_new_tokens,
            context_length=context_length,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            stride=stride,
            use_cache=use_cache,
        )
    return loaded.tokenizer.decode([*tokens.tolist(), *written.tolist()])
