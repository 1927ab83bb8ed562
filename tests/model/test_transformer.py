import math

import pytest
import torch

from nanolm.config import Initialization
from nanolm.model.build import build, count_parameters
from nanolm.model.transformer import INITIALIZATIONS, Transformer
from nanolm.training import optimizers
from nanolm.training.step import next_token_loss
from tests.conftest import config_of

MODELS = ("gpt", "gpt2", "gpt3")


@pytest.mark.parametrize("model", MODELS)
def test_no_output_depends_on_a_later_input(model: str) -> None:
    built = build(config_of(f"model={model}", "size.context_length=12"), 11)
    awaken(built)
    embedded: list[torch.Tensor] = []
    built.token_embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))  # type: ignore[union-attr,operator]
    logits = built(torch.randint(11, (1, 12)))
    for t in range(12):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded[0], retain_graph=True)
        reach = gradient[0].abs().sum(-1)
        assert (reach[: t + 1] > 0).all(), f"position {t} does not see all of its past"
        assert (reach[t + 1 :] == 0).all(), f"position {t} sees its future"


def awaken(model: torch.nn.Module) -> None:
    """Moves every weight off its start, where projections may be zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)


def test_a_shorter_input_gives_the_same_logits() -> None:
    built = build(config_of("size.context_length=12"), 11).eval()
    awaken(built)
    tokens = torch.randint(11, (2, 12))
    torch.testing.assert_close(built(tokens[:, :5]), built(tokens)[:, :5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "vocab_size", "expected"),
    [
        # V C + T C + L (12 C^2 + 13 C) + 2 C, the head being the embedding
        (("model=gpt2", "size=tiny"), 65, 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128),
        (("model=gpt2", "size=small"), 65, 10_770_816),
        (("model=gpt2", "size=gpt2"), 50_257, 124_439_808),
        # 2 V C + 12 L C^2
        (("model=gpt", "size=tiny"), 65, 2 * 65 * 128 + 4 * 12 * 128**2),
    ],
)
def test_parameters_are_the_formula(overrides: tuple[str, ...], vocab_size: int, expected: int) -> None:
    with torch.device("meta"):
        built = Transformer(config_of(*overrides), vocab_size)
    assert count_parameters(built) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [("gpt2_medium", 354_823_168), ("gpt2_large", 774_030_080), ("gpt2_xl", 1_557_611_200)]
)
def test_the_elders_have_the_published_sizes(size: str, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(Transformer(config_of("model=gpt2", f"size={size}"), 50_257)) == expected


@pytest.mark.parametrize("model", MODELS)
def test_the_first_loss_is_that_of_a_guess(model: str) -> None:
    built = build(config_of(f"model={model}"), 65)
    tokens = torch.randint(65, (8, 65))
    loss = next_token_loss(built(tokens[:, :-1]), tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(65), abs=0.1)


def test_the_weights_come_from_the_seed_alone() -> None:
    first = build(config_of("seed=5"), 20)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second, third = build(config_of("seed=5"), 20), build(config_of("seed=6"), 20)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(third.parameters()))


def test_gpt2_weights_are_drawn_as_the_paper_says() -> None:
    built = build(config_of("model=gpt2"), 65)
    block = built.blocks[0]  # type: ignore[index,union-attr]
    assert block.attention.query_key_value.weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr]
    assert block.feed_forward.projection.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)  # type: ignore[union-attr]
    assert set(INITIALIZATIONS) == set(Initialization)


@pytest.mark.parametrize("head", ["model.tied_head=true", "model.tied_head=false"])
def test_a_head_bias_is_added_to_the_logits(head: str) -> None:
    plain, biased = build(config_of(head), 11), build(config_of(head, "model.head_bias=true"), 11)
    (name,) = set(biased.state_dict()) - set(plain.state_dict())
    assert not biased.state_dict()[name].any(), "it begins at zero"
    awaken(biased)
    plain.load_state_dict({key: value for key, value in biased.state_dict().items() if key != name})
    tokens = torch.randint(11, (2, 8))
    torch.testing.assert_close(biased(tokens), plain(tokens) + biased.state_dict()[name])


def test_gpt3_has_biases_everywhere_but_in_attention() -> None:
    built = build(config_of("model=gpt3"), 11)
    biases = {name for name, _ in built.named_parameters() if name.endswith("bias")}
    assert "head.bias" in biases
    assert "blocks.0.feed_forward.projection.bias" in biases
    assert not [name for name in biases if ".attention." in name]


def test_dropout_is_off_outside_training() -> None:
    built = build(config_of("model.dropout=0.5"), 11)
    awaken(built)
    tokens = torch.randint(11, (1, 64))
    assert not torch.equal(built(tokens), built(tokens))
    built.eval()
    assert torch.equal(built(tokens), built(tokens))


# Loss before the first update, after it, and after the second, on fixed tokens. Renew a row when the model or the
# optimizer is meant to have changed: run this test, read the figures that it found, and say in the commit why.
GOLDEN = {
    "gpt": (4.174389, 3.972469, 3.744359),
    "gpt2": (4.254592, 3.159377, 2.902582),
    "gpt3": (4.134684, 2.850008, 2.599848),
}


@pytest.mark.parametrize("model", MODELS)
def test_golden_losses_of_the_first_updates(model: str) -> None:
    config = config_of(f"model={model}")
    built = build(config, 65)
    optimizer = optimizers.build(config.optimizer, built)
    tokens = torch.arange(4 * 65).view(4, 65) * 7 % 65
    found = []
    for _ in range(3):
        loss = next_token_loss(built(tokens[:, :-1]), tokens[:, 1:])
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found == pytest.approx(GOLDEN[model], rel=2e-4), f"found {found}; see the comment above GOLDEN"
