import pytest

from nanolm.config.tokenizer import (
    SentencePieceConfig,
)
from nanolm.data import tokenizers
from nanolm.errors import TokenizerError
from tests.texts import CORPUS


def test_fit_refuses_too_small_vocabulary_and_no_text() -> None:
    with pytest.raises(TokenizerError, match="the bytes and the characters of the corpus are more"):
        tokenizers.fit(SentencePieceConfig(vocab_size=262), CORPUS)
    with pytest.raises(TokenizerError, match="the corpus"):
        tokenizers.fit(SentencePieceConfig(), ["\n"])
