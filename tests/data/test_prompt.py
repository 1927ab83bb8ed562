from pathlib import Path

import pytest

from nanolm.data import corpus as corpora
from nanolm.data.prompt import choose_prompt
from nanolm.data.tokens import cache as token_cache
from tests.helpers import make_config

TEXTS = {
    "The quick brown fox jumps over the lazy dog.\n": "The quick brown fox",
    "\n\n- one item of a list\n": "one item of a list",
    "東京都は日本の首都である。" * 3: "東京都は日本の首都である。東京都は日本の",
    "3.14159265358979323846264338327950288 ": "3.141592653589793238",
    "--- ---\n": "-",
}


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word", "bpe"])
@pytest.mark.parametrize("text", TEXTS)
def test_choose_prompt_takes_beginning_of_text(text: str, tokenizer: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(text * 200, encoding="utf-8", newline="")
    config = make_config("dataset=text", f"dataset.path={path}", f"tokenizer={tokenizer}", "size.context_length=4")
    corpus = corpora.load(config.dataset)
    fitted = token_cache.fit_tokenizer(corpus, config)
    prompt = choose_prompt(token_cache.tokenize(corpus, fitted, config)["train"], fitted)
    assert prompt
    assert len(fitted.encode(prompt))
    if tokenizer == "char":
        assert prompt == TEXTS[text]
