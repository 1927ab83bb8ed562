"""Causal convolutions (model.embedding_convolution, model.sublayer_convolution)."""

from pathlib import Path

import pytest
import torch

from nanolm.config.run import Config
from nanolm.data.tokenizers import ByteTokenizer
from nanolm.errors import NanolmError
from nanolm.inference.engine import Engine
from nanolm.inference.load import load_run
from nanolm.inference.settings import GenerationSettings
from nanolm.interop.architectures import find_architecture
from nanolm.model import count
from nanolm.model.build import build, count_parameters
from nanolm.model.convolution import CausalConvolution
from nanolm.model.sampling import next_logits_fn
from nanolm.model.transformer import Transformer
from nanolm.training.optimizers.build import parameter_groups
from tests.helpers import make_config, mistakes, mostly_slow, randomize_weights
from tests.run_fixtures import make_run

LENGTH = 12

MODELS = ["model=gpt", "mask=banded_causal mask.window=3", "mask=prefix", "model.sublayer_convolution=null"]


def config_of(*overrides: str) -> Config:
    return make_config(
        "size.n_layers=2",
        "size.n_heads=4",
        "size.d_model=32",
        f"size.context_length={LENGTH}",
        "model.embedding_convolution=4",
        "model.sublayer_convolution=3",
        *overrides,
    )


def built(*overrides: str) -> Transformer:
    model = build(config_of(*overrides), 256)
    assert isinstance(model, Transformer)
    randomize_weights(model)
    return model.eval()


def test_it_equals_a_depthwise_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    convolution = CausalConvolution(5, 4)
    convolution.weight_KxC.data.normal_(generator=generator)
    kernel = torch.cat([convolution.weight_KxC.flip(0), torch.ones(1, 5)]).T[:, None]
    for length in (1, 2, 9):
        x = torch.randn(2, length, 5, generator=generator)
        expected = torch.nn.functional.conv1d(x.mT, kernel, padding=3, groups=5).mT[:, :length]
        torch.testing.assert_close(convolution(x), expected)


def test_the_initial_model_is_that_without_a_convolution() -> None:
    tokens = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    without = build(config_of("model.embedding_convolution=null"), 256)
    torch.manual_seed(0)
    with_it = build(config_of(), 256)
    with_it.load_state_dict(without.state_dict(), strict=False)
    assert torch.equal(with_it(tokens), without(tokens))


@pytest.mark.parametrize(
    "overrides",
    mostly_slow(
        ["model=gpt", "mask=banded_causal mask.window=3", "mask=prefix", "model.sublayer_convolution=null"],
        quick=["model=gpt"],
    ),
)
def test_cached_and_batched_generation_have_the_tokens_of_the_whole_context(overrides: str) -> None:
    model = built(*overrides.split())
    prompts = ("a", "hello", "x" * 20)
    settings = GenerationSettings(max_new_tokens=20, temperature=0, stride=5)
    engine = Engine(model, ByteTokenizer(), LENGTH)
    for prompt, generation in zip(prompts, engine.generate(prompts, settings), strict=True):
        text = list(prompt.encode())
        next_logits = next_logits_fn(model, LENGTH, 5, use_cache=False)
        cached = next_logits_fn(model, LENGTH, 5)
        for token in generation.tokens:
            logits = next_logits(torch.tensor(text))
            torch.testing.assert_close(cached(torch.tensor(text)), logits, rtol=1e-4, atol=1e-5)
            assert token.id == int(logits.argmax())
            text.append(token.id)


def test_no_token_of_another_document_is_read() -> None:
    model = built("mask.within_documents=true")
    tokens = torch.randint(256, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 5 + [1] * (LENGTH - 5)])
    changed = tokens.clone()
    changed[0, :5] = 7
    found, expected = model(changed, documents)[:, 5:], model(tokens, documents)[:, 5:]
    assert torch.equal(found, expected)


def test_counts_and_parameter_groups() -> None:
    config = config_of("optimizer=muon")
    model = build(config, 256)
    assert count.total(count.parameters(config, 256)) == count_parameters(model)
    group = next(group for group in parameter_groups(model, config.optimizer) if group["name"] == "other")
    assert {tuple(parameter.shape) for parameter in group["params"]} == {(3, 32), (2, 32)}
    assert group["weight_decay"] == 0


def test_no_architecture_of_transformers_has_it() -> None:
    with pytest.raises(NanolmError, match=r"embedding_convolution=4 \(needs null\), model\.sublayer_convolution=3"):
        find_architecture(config_of("model=gpt"))


def test_wrong_widths_are_refused() -> None:
    for name in ("embedding_convolution", "sublayer_convolution"):
        assert any(name in found for found in mistakes(f"model.{name}=1"))


@pytest.mark.slow
def test_a_run_trains_and_loads(tmp_path: Path, text: Path) -> None:
    run = make_run(
        tmp_path / "run",
        text,
        "model=gpt",
        "model.embedding_convolution=3",
        "model.sublayer_convolution=3",
        "optimizer=muon",
    )
    model = load_run(str(run)).model
    assert isinstance(model, Transformer)
    assert model.embedding_convolution is not None
    assert model.embedding_convolution.weight_KxC.abs().min() > 0
