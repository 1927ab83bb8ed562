import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nanolm.baselines.entropy import bigram_loss, unigram_loss
from nanolm.config.tokenizer import CharConfig
from nanolm.data.tokenizers import CharTokenizer


def test_losses_match_formula() -> None:
    generator = np.random.default_rng(0)
    train, heldout = generator.integers(0, 7, 300), generator.integers(0, 9, 50)
    pairs, firsts, singles = Counter(itertools.pairwise(train)), Counter(train[:-1]), Counter(train)
    bigram = [(pairs[a, b] + 1) / (firsts[a] + 9) for a, b in itertools.pairwise(heldout)]
    unigram = [(singles[b] + 1) / (300 + 9) for b in heldout[1:]]
    assert bigram_loss(train, heldout, 9) == pytest.approx(-sum(map(math.log, bigram)) / 49)
    assert unigram_loss(train, heldout, 9) == pytest.approx(-sum(map(math.log, unigram)) / 49)


def test_bigram_loss_handles_large_vocabulary() -> None:
    tokens = np.array([0, 50_256, 1, 50_256, 1], dtype=np.uint16)
    expected = -(2 * math.log(3 / (2 + 50_257)) + math.log(2 / (1 + 50_257)) + math.log(2 / (1 + 50_257))) / 4
    assert bigram_loss(tokens, tokens, 50_257) == pytest.approx(expected)


def test_losses_reproduce_tiny_shakespeare(shakespeare: Path) -> None:
    text = shakespeare.read_text(encoding="utf-8")
    tokenizer = CharTokenizer.fit([text], CharConfig())
    tokens = tokenizer.encode(text)
    train, val = tokens[:1_003_854], tokens[1_003_854:]
    assert bigram_loss(train, val, 65) == pytest.approx(2.4819, abs=5e-5)
    assert bigram_loss(train, train, 65) == pytest.approx(2.4546, abs=1e-3)
    assert unigram_loss(train, val, 65) == pytest.approx(3.347, abs=5e-4)
