import math

import numpy as np
import pytest

from nanolm.config import ByteConfig
from nanolm.data.corpus import Corpus
from nanolm.data.stream import Stream, tokenize
from nanolm.data.tokenizers import ByteTokenizer
from nanolm.errors import DataError
from tests.conftest import config_of


def test_a_corpus_becomes_a_stream_a_split() -> None:
    streams = tokenize(Corpus({"train": "é" * 40, "val": "ab" * 40}, ""), ByteTokenizer(), config_of())
    assert {split: len(stream.tokens) for split, stream in streams.items()} == {"train": 80, "val": 80}
    assert streams["val"].scored_bytes == 79


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    stream = Stream(np.zeros(101, dtype=np.uint8), scored_bytes=100)
    assert stream.bits_per_byte(math.log(256)) == pytest.approx(8)


def test_a_split_shorter_than_a_context_is_refused() -> None:
    tokenizer = ByteTokenizer.fit([], ByteConfig())
    assert tokenize(Corpus({"train": "a" * 65}, ""), tokenizer, config_of())
    with pytest.raises(DataError, match=r"the train split has 64 tokens, and a context of 64 needs 65"):
        tokenize(Corpus({"train": "a" * 64}, ""), tokenizer, config_of())
