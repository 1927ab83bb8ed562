import math
from pathlib import Path

import pytest

from nanolm.errors import NanolmError, TokenizerError
from nanolm.inference.generate import generate
from nanolm.inference.load import load_run


def test_generate_continues_the_prompt(trained: Path) -> None:
    loaded = load_run(str(trained))
    text = generate(loaded, "12 and 13", max_new_tokens=30)
    assert text.startswith("12 and 13")
    assert len(text) == len("12 and 13") + 30
    assert text == generate(loaded, "12 and 13", max_new_tokens=30)
    assert text != generate(loaded, "12 and 13", max_new_tokens=30, seed=1)
    greedy = generate(loaded, "12", max_new_tokens=30, temperature=0)
    assert greedy == generate(loaded, "12", max_new_tokens=30, top_k=1, seed=5)


def test_cache_does_not_change_the_text(trained: Path) -> None:
    loaded = load_run(str(trained))
    for stride in (None, 1, 16):
        texts = {generate(loaded, "12", max_new_tokens=40, stride=stride, use_cache=cache) for cache in (True, False)}
        assert len(texts) == 1, "greedy or drawn, past the context of 16 too"


def test_invalid_arguments_are_errors(trained: Path) -> None:
    loaded = load_run(str(trained))
    with pytest.raises(TokenizerError, match=r"not in the tokenizer's vocabulary: 'Q' \(U\+0051\), '中' \(U\+4E2D\)"):
        generate(loaded, "Q 中")
    for prompt, keywords, expected in (
        ("", {}, "the prompt is empty"),
        ("1", {"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ("1", {"temperature": -1.0}, "--temperature is -1.0"),
        ("1", {"top_k": 0}, "--top-k is 0"),
        ("1", {"stride": 0}, "--stride is 0"),
        ("1", {"stride": 17}, "--stride is 17"),
        ("1", {"seed": 2**63}, "--seed is 9223372036854775808"),
        ("1", {"seed": -1}, "--seed is -1"),
        ("1", {"temperature": math.nan}, "--temperature is nan"),
    ):
        with pytest.raises(NanolmError, match=expected):
            generate(loaded, prompt, **keywords)  # type: ignore[arg-type]


def test_extreme_arguments_generate_text(trained: Path) -> None:
    loaded = load_run(str(trained))
    greedy = generate(loaded, "12 and", max_new_tokens=20, temperature=0)
    for temperature in (1e-30, 1e-45, 5e-324):
        assert generate(loaded, "12 and", max_new_tokens=20, temperature=temperature, top_k=5) == greedy
    for numbers in ({"temperature": 1e30}, {"top_k": 2**63 - 1}, {"seed": 2**63 - 1}):
        assert len(generate(loaded, "12", max_new_tokens=5, **numbers)) == 7  # type: ignore[arg-type]
