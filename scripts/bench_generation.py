"""Measure text generation against the cached generation of transformers, as ratios of paired runs in one process.

    python scripts/bench_generation.py [--pairs 3] [--tokens 128] [--threads 2]

GPT-2's shape with 124M random weights, a prompt of 24 tokens, sampling at temperature 1. Also the ratio of 8 samples to
one, tokens per second of size=small, and the time to the first token. Needs transformers, which make install installs.

A token of one sample reads every weight once, so that the speed is the memory bandwidth divided by the size of the
weights: 498 MB in fp32, 124 MB in int8. For size=small it is 43 MB in fp32: 1,000 tokens per second would need 43 GB/s
on one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from bench_loop import interleave, ratios

from nanolm.compose import compose_command
from nanolm.inference.engine import Engine
from nanolm.inference.settings import GenerationSettings
from nanolm.inference.weight_formats import WeightFormat, convert_weights, transpose_large_layers
from nanolm.model.build import build

GPT2_VOCABULARY = 50257
PROMPT_TOKENS = 24


class Vocabulary:
    """A tokenizer whose tokens are not text, so that only the model and the sampling are measured."""

    lossless = False
    special_tokens: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.pieces = [b"x"] * vocab_size

    def encode(self, text: str) -> torch.Tensor:
        """Return one token per character."""
        return torch.tensor([ord(character) % self.vocab_size for character in text])

    def decode(self, ids: Iterable[int]) -> str:
        """Return one character per token."""
        return "x" * len(list(ids))


def engine_of(overrides: list[str], vocab_size: int, weight_format: WeightFormat) -> Engine:
    """Build a model with random weights as `nanolm generate` would load it."""
    model = build(compose_command(overrides).config, vocab_size).requires_grad_(False).eval()
    convert_weights(model, weight_format)
    transpose_large_layers(model)
    return Engine(model, Vocabulary(vocab_size), model.context_length)  # type: ignore[arg-type]


def generation(engine: Engine, tokens: int, samples: int = 1) -> Callable[[], float]:
    """Return a function that generates and returns the seconds per new token."""
    settings = GenerationSettings(max_new_tokens=tokens)

    def run() -> float:
        began = time.perf_counter()
        for _ in engine.stream("a" * PROMPT_TOKENS, settings, samples):
            pass
        return (time.perf_counter() - began) / (tokens * samples)

    return run


def peer(tokens: int) -> Callable[[], float]:
    """Return the same for GPT2LMHeadModel of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config()).eval()
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = None
    prompt = torch.full((1, PROMPT_TOKENS), 97)

    def run() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                top_k=0,
            )
        return (time.perf_counter() - began) / tokens

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("generation, GPT-2 124M: how many times as fast (median, min, max)")
    theirs = peer(options.tokens)

    def add(name: str, other: str, ours: Callable[[], float], reference: Callable[[], float]) -> None:
        seconds = interleave(ours, reference, options.pairs)
        found = [1 / ratio for ratio in ratios(seconds)]
        speed = 1 / statistics.median(a for a, _ in seconds)
        spread = "".join(f"{f:7.2f}" for f in (statistics.median(found), min(found), max(found)))
        print(f"{name:<20} than {other:<22}{spread}{speed:8.1f} tokens/s", flush=True)

    gpt2 = ["model=gpt2", "size=gpt2"]
    for weight_format in WeightFormat:
        engine = engine_of(gpt2, GPT2_VOCABULARY, weight_format)
        add(weight_format.value, "transformers, float32", generation(engine, options.tokens), theirs)
        if weight_format is not WeightFormat.bfloat16:
            add(
                f"{weight_format.value}, 8 samples",
                f"{weight_format.value}, 1 sample",
                generation(engine, options.tokens, 8),
                generation(engine, options.tokens),
            )
    first = engine.stream("a" * PROMPT_TOKENS, GenerationSettings(max_new_tokens=1))
    next(first)
    print(f"first token of int8: {first.first_seconds:.3f} s")
    for weight_format in (WeightFormat.float32, WeightFormat.int8):
        small = engine_of(["model=gpt", "size=small"], 256, weight_format)
        seconds = [generation(small, 100)() for _ in range(options.pairs)]
        print(f"size=small, {weight_format.value}, 100 tokens: {1 / min(seconds):,.0f} tokens/s")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.pairs} pairs, {options.tokens} tokens"
    )


if __name__ == "__main__":
    main()
