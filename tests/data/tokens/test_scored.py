"""Which tokens of dataset=instructions are scored, from rows to batches and losses."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nanolm.baselines.entropy import bigram_loss, unigram_loss
from nanolm.config.batch_schedule import Stage
from nanolm.config.run import Config
from nanolm.config.tokenizer import BpeConfig, ByteConfig, CharConfig, Gpt2Config, TokenizerConfig, WordConfig
from nanolm.config.trainer import Precision, Sampling
from nanolm.data import corpus as corpora
from nanolm.data.batches import IGNORE_INDEX, draw
from nanolm.data.conversation import Message, render
from nanolm.data.tokenizers import Tokenizer
from nanolm.data.tokens import cache as token_cache
from nanolm.data.tokens.stream import Scored, Stream
from nanolm.training.precision import NumberFormat
from nanolm.training.validation import exact_loss
from tests.helpers import make_config
from tests.texts import write_small_gpt2

CONTEXT = 24
# With the markers of the template, names of special tokens and characters of several bytes.
WORDS = [
    "ab",
    "a b",
    "<|end|>",
    "<|assistant|>",
    "<|user|>x\n",
    "\n",
    " é",
    "日本",
    "😀",
    "<|endoftext|>",
    "<unk>",
    "xyz " * 9,
]
TOKENIZERS: dict[str, TokenizerConfig] = {
    "char": CharConfig(),
    "byte": ByteConfig(),
    "bpe": BpeConfig(vocab_size=300),
    "gpt2": Gpt2Config(),
    "word": WordConfig(),
}


def random_conversations(seed: int, n: int = 40) -> list[list[Message]]:
    generator = random.Random(seed)

    def text() -> str:
        return "a" + "".join(generator.choices(WORDS, k=generator.randint(0, 6)))

    def conversation() -> list[Message]:
        turns = [
            message for _ in range(generator.randint(1, 3)) for message in (("user", text()), ("assistant", text()))
        ]
        system, last = [("system", text())] * generator.randint(0, 1), [("user", text())] * generator.randint(0, 1)
        return [Message(*message) for message in [*system, *turns, *last]]

    return [conversation() for _ in range(n)]


def prepare(
    folder: Path, conversations: list[list[Message]], name: str, sampling: Sampling = Sampling.windows
) -> tuple[Config, Tokenizer, dict[str, Stream]]:
    rows = [{"messages": [message._asdict() for message in messages]} for messages in conversations]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config("dataset=instructions", "dataset.path=unset")
    config.dataset.path = str(folder / "rows.jsonl")  # type: ignore[attr-defined]
    config.dataset.val_fraction = 0.3
    config.trainer.sampling = sampling
    config.size.context_length = CONTEXT
    config.tokenizer = write_small_gpt2(folder) if name == "gpt2" else TOKENIZERS[name]
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    return config, tokenizer, token_cache.tokenize(corpus, tokenizer, config)


def expected_documents(
    conversations: list[list[Message]], tokenizer: Tokenizer, config: Config
) -> list[tuple[list[int], list[bool]]]:
    found = []
    for messages in conversations:
        ids: list[int] = []
        mask: list[bool] = []
        for text, scored in render(messages, config.dataset.template):  # type: ignore[attr-defined]
            encoded = tokenizer.encode(text).tolist()
            ids, mask = ids + encoded, mask + [scored] * len(encoded)
        found.append((ids, mask))
    return found


@pytest.mark.parametrize("sampling", [Sampling.windows, Sampling.documents])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_scored_tokens_are_exactly_those_of_responses(name: str, sampling: Sampling, tmp_path: Path) -> None:
    conversations = random_conversations(seed=len(name))
    config, tokenizer, streams = prepare(tmp_path, conversations, name, sampling)
    separator = tokenizer.encode("\n").tolist()
    expected = expected_documents(conversations, tokenizer, config)
    # The last document of the text has no line end.
    with_end = [(ids + separator, mask + [False] * len(separator)) for ids, mask in expected[:-1]] + expected[-1:]
    found = []
    for stream in streams.values():
        assert stream.scored is not None
        edges = [*stream.documents.tolist(), len(stream.tokens)]
        for begin, end in itertools.pairwise(edges):
            found.append((stream.tokens[begin:end].tolist(), stream.scored.mask[begin:end].tolist()))
    assert sorted(found) == sorted(with_end)
    scored = [ids for ids, mask in expected for ids, is_scored in zip(ids, mask, strict=True) if is_scored]
    assert sum(stream.scored_tokens for stream in streams.values()) == len(scored)
    if tokenizer.lossless:
        assert sum(stream.scored_bytes for stream in streams.values()) == tokenizer.count_bytes(np.array(scored))
        responses = [
            segment.text
            for messages in conversations
            for segment in render(messages, config.dataset.template)
            if segment.scored
        ]  # type: ignore[attr-defined]
        assert tokenizer.decode(scored) == "".join(responses)


@pytest.mark.parametrize("sampling", [Sampling.windows, Sampling.epochs])
def test_batches_score_responses_only(sampling: Sampling, tmp_path: Path) -> None:
    _, _, streams = prepare(tmp_path, random_conversations(seed=1), "char", sampling)
    stream = streams["train"]
    assert stream.scored is not None
    tokens, mask = np.asarray(stream.tokens[:]).astype(np.int64), stream.scored.mask
    # The same text may occur several times, with other roles.
    windows = {
        (tuple(tokens[at : at + CONTEXT]), tuple(np.where(mask, tokens, IGNORE_INDEX)[at + 1 : at + 1 + CONTEXT]))
        for at in range(len(tokens) - CONTEXT)
    }
    for step in range(60):
        inputs_BxT, targets_BxT, _ = draw(sampling, stream, Stage(0, 1, 4, CONTEXT), seed=0, step=step)
        assert (targets_BxT != IGNORE_INDEX).any(axis=1).all()
        assert {*zip(map(tuple, inputs_BxT), map(tuple, targets_BxT), strict=True)} <= windows


def test_an_epoch_of_documents_scores_every_response_token_once(tmp_path: Path) -> None:
    _, _, streams = prepare(tmp_path, random_conversations(seed=2), "bpe", Sampling.documents)
    stream = streams["train"]
    assert stream.rows is not None
    assert stream.scored is not None
    targets = [
        draw(Sampling.documents, stream, Stage(0, 1, 1, CONTEXT), seed=0, step=step).targets_BxT
        for step in range(len(stream.rows))
    ]
    scored = np.concatenate(targets).ravel()
    scored = scored[scored != IGNORE_INDEX]
    assert sorted(scored) == sorted(np.asarray(stream.tokens[:])[stream.scored.mask])


class Pairs(nn.Module):
    """A model whose prediction depends on the last token only."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Parameter(torch.randn(vocab_size, vocab_size))

    def forward(self, tokens_BxT: torch.Tensor) -> torch.Tensor:
        return self.logits[tokens_BxT]


@pytest.mark.parametrize(
    ("sampling", "stride"), [(Sampling.windows, CONTEXT), (Sampling.windows, 7), (Sampling.documents, CONTEXT)]
)
def test_exact_loss_is_over_responses_only(sampling: Sampling, stride: int, tmp_path: Path) -> None:
    _, tokenizer, streams = prepare(tmp_path, random_conversations(seed=3), "char", sampling)
    stream, model = streams["val"], Pairs(tokenizer.vocab_size)
    assert stream.scored is not None
    found = exact_loss(
        model,
        stream,
        context_length=CONTEXT,
        stride=stride,
        vocab_size=tokenizer.vocab_size,
        device=torch.device("cpu"),
        number_format=NumberFormat(Precision.fp32, torch.device("cpu")),
    )
    log_p = model.logits.log_softmax(dim=1)
    tokens, mask = stream.tokens[:].tolist(), stream.scored.mask.tolist()
    losses = [-log_p[tokens[at - 1], tokens[at]].item() for at in range(1, len(tokens)) if mask[at]]
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert stream.scored_tokens == len(losses)


def test_baselines_count_and_score_responses_only() -> None:
    generator = np.random.default_rng(0)
    train, heldout = generator.integers(0, 5, 200), generator.integers(0, 5, 80)
    is_counted, is_scored = generator.random(200) < 0.3, generator.random(80) < 0.4
    is_counted[0] = is_scored[0] = False
    pairs = [(train[at - 1], train[at]) for at in np.flatnonzero(is_counted)]
    scored = [(heldout[at - 1], heldout[at]) for at in np.flatnonzero(is_scored)]
    bigram = [math.log((pairs.count(pair) + 1) / (sum(a == pair[0] for a, _ in pairs) + 5)) for pair in scored]
    unigram = [math.log((sum(b == pair[1] for _, b in pairs) + 1) / (len(pairs) + 5)) for pair in scored]
    masks: Any = (is_counted, is_scored)
    assert bigram_loss(train, heldout, 5, *masks) == pytest.approx(-np.mean(bigram))
    assert unigram_loss(train, heldout, 5, *masks) == pytest.approx(-np.mean(unigram))


@pytest.mark.parametrize("length", [1, 2, 5, 30])
def test_windows_without_targets_move_to_the_nearest(length: int) -> None:
    generator = np.random.default_rng(length)
    for _ in range(50):
        mask = generator.random(100) < 0.04
        mask[0] = False
        mask[generator.integers(1, 100)] = True
        scored, starts = Scored(mask), np.arange(100 - length)
        moved = scored.move_to_targets(starts, length)
        assert (moved >= 0).all()
        assert (moved < 100 - length).all()
        has_target = np.array([mask[start + 1 : start + 1 + length].any() for start in starts])
        assert (moved[has_target] == starts[has_target]).all()
        assert all(mask[start + 1 : start + 1 + length].any() for start in moved)
        assert scored.n_tokens == mask.sum()
        assert scored.first == mask.argmax()
