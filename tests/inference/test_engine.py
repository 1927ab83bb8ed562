import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nanolm.data.tokenizers import ByteTokenizer, CharTokenizer
from nanolm.errors import DivergedError, NanolmError, SettingsError
from nanolm.inference import decoder
from nanolm.inference.engine import Engine, Finish
from nanolm.inference.load import load_run
from nanolm.inference.prompt import MAX_CHARACTERS
from nanolm.inference.sampling import draw, uniform_draws
from nanolm.inference.settings import GenerationSettings
from nanolm.inference.weight_formats import WeightFormat, convert_weights, transpose_large_layers
from nanolm.model.build import build
from nanolm.model.sampling import next_logits_fn
from tests.helpers import make_config, mostly_slow, randomize_weights

LENGTH = 16
# Of different lengths, one longer than the context.
PROMPTS = ("a", "hello", "x" * 20)

MODELS = (
    "model=gpt",
    "model=gpt2",
    "model=llama size.n_kv_heads=1",
    "model=bigram",
    "model.positions=alibi",
    "model.positions=sinusoidal",
    "model.positions=none mask=strided mask.stride=3",
    "model.positions=alibi mask=prefix mask.prefix_length=6",
    "mask=none",
    "mask=banded mask.window=2",
    "mask=banded_causal mask.window=3",
    "mask=block_local mask.block_size=5 model.positions=learned",
    "mask=document",
    "mask=banded_causal mask.window=2 mask.pattern=[causal,banded_causal]",
    "model.attention=uniform",
    "model=gpt2 size.d_key=6 size.d_value=3",
    "model=gpt2 model.norm_placement=post",
    "model.residual=false model.logit_softcap=5",
    "model.feed_forward=none model.output_projection=false",
)


def small(*overrides: str) -> torch.nn.Module:
    sizes = ("size.n_layers=2", "size.n_heads=2", "size.d_model=16", f"size.context_length={LENGTH}")
    built = build(make_config(*sizes, *overrides), 256)
    randomize_weights(built)
    return built.requires_grad_(False).eval()


def engine_of(*overrides: str) -> Engine:
    return Engine(small(*overrides), ByteTokenizer(), LENGTH)


def ids(
    engine: Engine, prompts: str | tuple[str, ...], settings: GenerationSettings, samples: int = 1
) -> list[list[int]]:
    return [[token.id for token in each.tokens] for each in engine.generate(prompts, settings, samples)]


def without_cache(model: nn.Module, text: list[int], new_tokens: int, seed: int, stride: int) -> list[int]:
    """Return new tokens, for each of which the whole context is computed."""
    next_logits = next_logits_fn(model, LENGTH, stride, use_cache=False)
    generators = [torch.Generator().manual_seed(seed)]
    tokens = list(text)
    for _ in range(new_tokens):
        tokens.append(int(draw(next_logits(torch.tensor(tokens))[None], uniform_draws(generators))))
    return tokens[len(text) :]


@pytest.mark.parametrize("model", mostly_slow(MODELS, quick=("model=gpt", "model=bigram", "mask=banded mask.window=2")))
def test_a_batch_has_the_tokens_of_single_texts(model: str) -> None:
    engine = engine_of(*model.split())
    settings = GenerationSettings(max_new_tokens=24, seed=5, stride=5)
    batch = ids(engine, PROMPTS, settings, samples=2)
    for row, tokens in enumerate(batch):
        prompt, seed = PROMPTS[row // 2], 5 + row % 2
        assert tokens == without_cache(engine.model, list(prompt.encode()), 24, seed, stride=5)
        assert tokens == ids(engine, prompt, GenerationSettings(max_new_tokens=24, seed=seed, stride=5))[0]


def test_samplers_work_in_batches() -> None:
    engine = engine_of()
    settings = GenerationSettings(
        max_new_tokens=20, temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.3, seed=1
    )
    batch = ids(engine, PROMPTS, settings)
    assert batch == [ids(engine, prompt, settings)[0] for prompt in PROMPTS]
    assert batch != ids(engine, PROMPTS, GenerationSettings(max_new_tokens=20, seed=1))


def test_tokens_carry_probabilities_and_alternatives() -> None:
    engine = engine_of()
    settings = GenerationSettings(max_new_tokens=3, temperature=0, alternatives=100)
    text = list(b"hello")
    for token in engine.stream("hello", settings):
        expected = engine.model(torch.tensor([text]))[0, -1].log_softmax(-1)
        assert token.log_probability == pytest.approx(expected.max().item(), abs=1e-4)
        assert token.alternatives[0].id == token.id
        probabilities = [each.probability for each in token.alternatives]
        assert len(probabilities) == 100
        assert probabilities == sorted(probabilities, reverse=True)
        assert token.probability == pytest.approx(math.exp(token.log_probability))
        text.append(token.id)


def test_a_small_vocabulary_has_fewer_alternatives() -> None:
    stream = cycling("abcd", "abcd").stream("a", GenerationSettings(max_new_tokens=1, alternatives=10))
    assert next(stream).alternatives[0].text == "b"
    assert len(stream.tokens[0][0].alternatives) == 4


def test_a_stream_can_be_stopped() -> None:
    stream = engine_of().stream("a", GenerationSettings(max_new_tokens=10))
    next(stream)
    stream.stop()
    assert list(stream) == []
    (generation,) = stream.generations()
    assert (len(generation.tokens), generation.finish) == (1, None)


def test_streams_are_independent() -> None:
    engine, settings = engine_of(), GenerationSettings(max_new_tokens=8)
    first, second = engine.stream("a", settings), engine.stream("a", settings)
    pairs = list(zip(first, second, strict=True))
    assert [a.id for a, _ in pairs] == [b.id for _, b in pairs] == ids(engine, "a", settings)[0]


class Cycle(torch.nn.Module):
    """Predicts the next character of a text that it repeats."""

    def __init__(self, text: str, tokenizer: CharTokenizer) -> None:
        super().__init__()
        tokens = tokenizer.encode(text).tolist()
        self.next_token = dict(zip(tokens, [*tokens[1:], tokens[0]], strict=True))
        self.vocab_size = tokenizer.vocab_size

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        following = tokens.clone().apply_(lambda token: self.next_token.get(token, 0))
        return 50.0 * torch.nn.functional.one_hot(following, self.vocab_size).float()


def cycling(text: str, vocabulary: str) -> Engine:
    tokenizer = CharTokenizer(list(vocabulary))
    return Engine(Cycle(text, tokenizer), tokenizer, 8)


def test_stop_strings_end_the_text() -> None:
    engine = cycling("abcd", "abcd")
    for stop, expected, finish in (
        (("cd",), "b", Finish.stop),
        (("da", "bcd"), "", Finish.stop),
        (("dabx", "da"), "bc", Finish.stop),
        (("xx",), "bcdabcd", Finish.length),
    ):
        stream = engine.stream("a", GenerationSettings(max_new_tokens=7, stop=stop))
        assert "".join(token.text for token in stream) == expected
        assert stream.generations()[0].finish is finish


def test_an_end_of_text_token_ends_the_text() -> None:
    engine = cycling("abcd", "abcd")
    engine._end_token = 3
    assert engine.generate("a")[0].text == "bc"
    assert engine.generate("a")[0].finish is Finish.eos
    assert engine.generate("a", GenerationSettings(ignore_eos=True, max_new_tokens=5))[0].text == "bcdab"


def test_an_empty_prompt_starts_from_a_line_end() -> None:
    engine = cycling("\nab", "\nab")
    stream = engine.stream("", GenerationSettings(max_new_tokens=2))
    assert stream.prompts[0].note == "the prompt is empty: the text starts from a line end"
    assert "".join(token.text for token in stream) == "ab"
    with pytest.raises(SettingsError, match="the vocabulary has neither <eos> nor a line end"):
        cycling("ab", "ab").stream("")


def test_all_invalid_settings_are_reported_at_once() -> None:
    settings = GenerationSettings(
        max_new_tokens=0,
        temperature=math.nan,
        top_k=0,
        top_p=1.5,
        min_p=-0.1,
        repetition_penalty=0,
        seed=-1,
        stop=("",),
        stride=17,
        alternatives=101,
    )
    with pytest.raises(SettingsError) as caught:
        engine_of().stream("a", settings)
    for option in (
        "--max-new-tokens is 0", "--temperature is nan", "--top-k is 0", "--top-p is 1.5", "--min-p is -0.1",
        "--repetition-penalty is 0", "--seed is -1", "--stop is ['']", "--stride is 17", "--alternatives is 101",
    ):  # fmt: skip
        assert option in str(caught.value)
    for top_p in (0.0, -1.0, math.nan):
        with pytest.raises(SettingsError, match="--top-p is"):
            engine_of().stream("a", GenerationSettings(top_p=top_p))


def test_a_prompt_of_a_megabyte_is_refused() -> None:
    with pytest.raises(SettingsError, match="the prompt has 1,000,000 characters") as caught:
        engine_of().stream("a" * 1_000_000)
    assert f"at most {MAX_CHARACTERS:,}" in str(caught.value)


def test_non_finite_logits_raise() -> None:
    engine = engine_of()
    torch.nn.init.constant_(engine.model.token_embedding.weight, torch.nan)  # type: ignore[arg-type,union-attr]
    with pytest.raises(DivergedError, match="the logits of the model are not finite"):
        engine.generate("a")


def test_causal_transformers_are_decoded_from_preallocated_memory() -> None:
    assert all(decoder.supports(small(mask)) for mask in ("mask=causal", "mask=banded_causal"))
    assert not any(decoder.supports(small(*each.split())) for each in ("mask=none", "model.attention=uniform"))


def test_int8_weights_give_nearly_the_same_logits() -> None:
    for overrides in (("model=gpt",), ("model=gpt2",)):
        model = small(*overrides)
        tokens = torch.randint(256, (3, LENGTH), generator=torch.Generator().manual_seed(0))
        expected = model(tokens)
        convert_weights(model, WeightFormat.int8)
        found = model(tokens)
        assert (found - expected).std() < 0.05 * expected.std()
        # No row depends on the rest of its batch.
        assert torch.equal(model(tokens[:1]), found[:1])


def test_bf16_weights_give_nearly_the_same_logits() -> None:
    for positions in ("rotary", "sinusoidal", "alibi", "learned"):
        model = small(f"model.positions={positions}")
        tokens = torch.randint(256, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        expected = model(tokens)
        convert_weights(model, WeightFormat.bfloat16)
        assert (model(tokens).float() - expected).std() < 0.1 * expected.std()
        settings = GenerationSettings(max_new_tokens=LENGTH + 4)
        assert len(ids(Engine(model, ByteTokenizer(), LENGTH), "ab", settings)[0]) == LENGTH + 4


def test_models_without_such_weights_are_not_converted() -> None:
    with pytest.raises(NanolmError, match="the model has no linear layers to quantize"):
        convert_weights(small("model=bigram"), WeightFormat.int8)
    for weight_format in (WeightFormat.int8, WeightFormat.bfloat16):
        with pytest.raises(NanolmError, match="the model has counts, not weights"):
            convert_weights(small("model=ngram"), weight_format)


def test_transposed_layers_have_the_same_values() -> None:
    model = small("model=gpt2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    transpose_large_layers(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_engine_of_a_run_generates_with_its_tokenizer(trained: Path) -> None:
    engine = Engine.of(load_run(str(trained)))
    (generation,) = engine.generate("12 and", GenerationSettings(max_new_tokens=5))
    assert len(generation.text) == 5


@pytest.mark.slow
def test_generating_does_not_import_the_compiler() -> None:
    code = "import sys, nanolm.inference.engine; print('torch._dynamo' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
