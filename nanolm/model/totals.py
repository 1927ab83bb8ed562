"""Totals of a composed model: parameters, FLOPs per token and training memory, by formula."""

from __future__ import annotations

import dataclasses
from typing import Any

from nanolm.compose import ComposedCommand
from nanolm.config.batch_schedule import largest_stage, stages, total_tokens
from nanolm.config.budget import budget_of
from nanolm.config.checks import check
from nanolm.config.checks.scheduler import check_phases
from nanolm.config.model import NgramConfig
from nanolm.config.tokenizer import (
    BpeConfig,
    ByteConfig,
    Gpt2Config,
    SentencePieceConfig,
    TokenizerConfig,
    UnigramConfig,
)
from nanolm.config.trainer import Precision
from nanolm.errors import SettingsError, raise_all
from nanolm.model import count, memory_estimate
from nanolm.model.budget import read_steps
from nanolm.model.count import Part
from nanolm.model.parameters import no_size, parameter_parts
from nanolm.model.shapes import dimensions, has_formula

# Symbols in the formulas.
SYMBOLS = {
    "V": "vocab_size",
    "C": "d_model",
    "N": "n_layers",
    "T": "context_length",
    "H": "n_heads",
    "G": "n_kv_heads",
    "D": "d_key",
    "E": "d_value",
    "F": "d_ff",
    "W": "window",
}


def known_vocab_size(tokenizer: TokenizerConfig) -> int | None:
    """Return the vocabulary size if it is known without the text; a trained subword tokenizer may have fewer."""
    if isinstance(tokenizer, BpeConfig | UnigramConfig | SentencePieceConfig):
        return tokenizer.vocab_size
    return {ByteConfig.name: 256, Gpt2Config.name: 50_257}.get(tokenizer.name)


def count_model(line: ComposedCommand, vocab_size: int | None = None) -> dict[str, Any]:
    """Count the parameters, FLOPs and memory of a composed model, as plain values.

    A plugin's model is built on the meta device and only its parameters are counted; values without a formula are None.

    Args:
        vocab_size: None takes it from the tokenizer's settings.

    Raises:
        SettingsError: the settings have mistakes, the vocabulary size is unknown, a plugin's model cannot be built, or
            the model is a table whose size depends on its text.
    """
    config = line.config
    problems = check(config)
    if config.model.name == NgramConfig.name:
        raise_all([*problems, no_size(config)])
    if vocab_size is None:
        vocab_size = known_vocab_size(config.tokenizer)
    if vocab_size is None:
        problems.append(
            SettingsError(
                f"the vocabulary size of tokenizer={line.choices['tokenizer']} is unknown until its text is read",
                where="tokenizer",
                hint="give it, for example --vocab-size 65; `nanolm data show` prints it",
            )
        )
    raise_all(problems)
    assert vocab_size is not None
    config = read_steps(config, vocab_size)
    raise_all(list(check_phases(config)))
    by_formula = has_formula(config)
    parts = parameter_parts(config, vocab_size)
    n_parameters, n_trained = count.total(parts), count.trained(parts)
    flops = count.flops_per_token(config, vocab_size) if by_formula else None
    memory = memory_estimate.state_memory(config, n_parameters, vocab_size)
    activations = memory_estimate.activation_memory(config, vocab_size) if by_formula else None
    amounts = {part.name: part.amount for part in memory}
    largest, tokens, mean_flops = (
        largest_stage(config),
        total_tokens(config),
        count.mean_flops_per_token(config, vocab_size),
    )
    return {
        "model": line.choices["model"],
        "size": line.choices["size"],
        "sizes": {SYMBOLS[letter]: size for letter, size in dimensions(config, vocab_size).items()},
        "parameters": {"parts": [_plain(part) for part in parts], "total": n_parameters, "trained": n_trained},
        "flops_per_token": {
            "parts": None if flops is None else [_plain(part) for part in flops],
            "forward": None if flops is None else count.total(flops),
            "training": count.training_flops_per_token(config, vocab_size),
        },
        "run": {
            "budget": budget_of(config.trainer).as_dict(),
            "steps": config.trainer.steps,
            "tokens": tokens,
            "has_padding": config.trainer.sampling.in_rows,
            "flops": None if mean_flops is None else tokens * mean_flops,
            "batches": [dataclasses.asdict(stage) for stage in stages(config)],
        },
        "memory_bytes": {
            "parts": [_plain(part) for part in memory],
            **{name: amounts.get(name) for name in ("weights", "gradients", "optimizer")},
            "optimizer_name": config.optimizer.name,
            "activations_estimate": None if activations is None else _plain(activations),
            "peak_estimate": memory_estimate.peak_memory(config, n_parameters, vocab_size) if by_formula else None,
            "key_value_cache": _plain(memory_estimate.cache_memory(config, vocab_size)) if by_formula else None,
            "batch_size": largest.batch_size // config.trainer.gradient_accumulation,
            "context_length": largest.context_length,
            "precision": "fp32" if config.trainer.precision is Precision.auto else config.trainer.precision.name,
        },
    }


def _plain(part: Part) -> dict[str, Any]:
    return {"part": part.name, "formula": part.formula, "per_layer": part.per_layer, "amount": part.amount}
