"""`nanolm generate`: what a run writes behind a prompt."""

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
    """Continues a prompt; the settings are those of `nanolm.model.sampling.sample`.

    Returns:
        The prompt and what follows.

    Raises:
        SettingsError: a number out of its range, or an empty prompt.
        TokenizerError: the prompt has characters that are not in the tokenizer's vocabulary.
    """
    if not prompt:
        raise SettingsError("the prompt is empty", where="--prompt", hint="give it at least one character")
    if max_new_tokens < 1:
        raise SettingsError(f"--max-new-tokens is {max_new_tokens}", where="--max-new-tokens", hint="1 or more")
    if not 0 <= temperature < float("inf"):
        raise SettingsError(f"--temperature is {temperature}", where="--temperature", hint="0 (the likeliest) or more")
    if top_k is not None and top_k < 1:
        raise SettingsError(f"--top-k is {top_k}", where="--top-k", hint="1 or more")
    if not 0 <= seed <= option_types.LARGEST:
        raise SettingsError(f"--seed is {seed}", where="--seed", hint=option_types.SEED.hint)
    context_length = loaded.config.size.context_length
    if stride is not None and not 1 <= stride <= context_length:
        raise SettingsError(
            f"--stride is {stride}", where="--stride", hint=f"from 1 to the context length, {context_length}"
        )
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
