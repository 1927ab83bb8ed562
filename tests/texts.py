"""Texts that are difficult to tokenize, and lossless tokenizers trained on a small corpus."""

import functools
import json
from pathlib import Path

from hypothesis import strategies as st

from nanolm.config.tokenizer import (
    BpeConfig,
    Gpt2Config,
    SentencePieceConfig,
    SentencePieceModel,
    TokenizerConfig,
    UnigramConfig,
)
from nanolm.data import tokenizers
from nanolm.data.tokenizers import byte_pieces

AWKWARD = "\0\t\n\r \x1c\x85\xa0\u0301\u093f\u2028\u2581\u2585\u3000\ufeff\ufffda'sé1१😀中<|>"
TEXTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.sampled_from(AWKWARD), max_size=40))
CORPUS = [
    "".join(f"{n} and {n + 1} make {2 * n + 1}, so that {n % 7} is left over.\n" for n in range(300)),
    "\tnaïve — 中文 😀\r\n" * 20,
]
LOSSLESS: dict[str, TokenizerConfig] = {
    "bpe": BpeConfig(vocab_size=400),
    "unigram": UnigramConfig(vocab_size=400),
    "sentencepiece bpe": SentencePieceConfig(vocab_size=400),
    "sentencepiece unigram": SentencePieceConfig(vocab_size=400, model_type=SentencePieceModel.unigram),
}
A_PAGE = (
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u0301\u0302 ﷽ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𒀀\n"
    "春眠不觉晓，处处闻啼鸟。 日本語のテキスト、한국어 텍스트　全角\u3000空白\n"
    "\0\x01\x07\x1b[0m\x1c\x1d\x1e\x1f\x7f\x80\x85\x9f end\r\n\r\n\r \t \v\f\n"
    "a\xa0b\u1680c\u2000d\u2003e\u2009f\u200bg\u2028h\u2029i\u202fj\u205fk\u2060l\ufeffm\n"
    "it's IT'S we'll they've I'd you're 'tis ''''s 10,000.50 ½ Ⅷ ١٢٣ x²\n"
    "   leading   inner  \t\t mixed \n\n\n   \n trailing   "
)


@functools.cache
def trained(kind: str) -> tokenizers.Tokenizer:
    """Train a tokenizer of LOSSLESS."""
    return tokenizers.fit(LOSSLESS[kind], CORPUS)


def write_small_gpt2(folder: Path, merges: str = "#version: 0.2\nh e\nhe y\n", **ids: object) -> Gpt2Config:
    """Write the two files of a GPT-2 tokenizer with two merges."""
    tokens = {
        token: n for n, token in enumerate([*byte_pieces.BYTE_TO_CHARACTER.values(), "he", "hey", "<|endoftext|>"])
    }
    (folder / "encoder.json").write_text(json.dumps(tokens | ids), encoding="utf-8")
    (folder / "vocab.bpe").write_text(merges, encoding="utf-8")
    return Gpt2Config(path=str(folder))
