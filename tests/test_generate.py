from pathlib import Path

import pytest

from nanolm.errors import NanolmError, TokenizerError
from nanolm.generate import generate
from nanolm.load import load_run
from tests.test_load import trained  # noqa: F401


def test_a_prompt_is_continued(trained: Path) -> None:  # noqa: F811
    loaded = load_run(str(trained))
    text = generate(loaded, "12 and 13", max_new_tokens=30)
    assert text.startswith("12 and 13")
    assert len(text) == len("12 and 13") + 30
    assert text == generate(loaded, "12 and 13", max_new_tokens=30)
    assert text != generate(loaded, "12 and 13", max_new_tokens=30, seed=1)
    greedy = generate(loaded, "12", max_new_tokens=30, temperature=0)
    assert greedy == generate(loaded, "12", max_new_tokens=30, top_k=1, seed=5)


def test_the_cache_changes_no_text(trained: Path) -> None:  # noqa: F811
    loaded = load_run(str(trained))
    for stride in (None, 1, 16):
        texts = {generate(loaded, "12", max_new_tokens=40, stride=stride, use_cache=cache) for cache in (True, False)}
        assert len(texts) == 1, "greedy or drawn, past the context of 16 too"


def test_what_cannot_be_done_is_refused(trained: Path) -> None:  # noqa: F811
    loaded = load_run(str(trained))
    with pytest.raises(TokenizerError, match=r"never seen: 'Q' \(U\+0051\), '中' \(U\+4E2D\)"):
        generate(loaded, "Q 中")
    for prompt, keywords, expected in (
        ("", {}, "the prompt is empty"),
        ("1", {"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ("1", {"temperature": -1.0}, "--temperature is -1.0"),
        ("1", {"top_k": 0}, "--top-k is 0"),
        ("1", {"stride": 0}, "--stride is 0"),
        ("1", {"stride": 17}, "--stride is 17"),
    ):
        with pytest.raises(NanolmError, match=expected):
            generate(loaded, prompt, **keywords)  # type: ignore[arg-type]
