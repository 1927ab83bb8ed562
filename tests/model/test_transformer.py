import math

import pytest
import torch

from nanolm.compose import config_folder
from nanolm.config.mask import layers_by_mask
from nanolm.model import masks
from nanolm.model.build import build, count_parameters
from nanolm.model.loss import next_token_loss
from nanolm.model.transformer import Transformer
from nanolm.training.optimizers import build as optimizers
from tests.helpers import make_config, mostly_slow, randomize_weights

MODELS = ("gpt", "gpt2", "gpt3")
RUNGS = sorted(f"ladder/{path.stem}" for path in config_folder().glob("experiment/ladder/*.yaml"))
CAUSAL_MASKS = (
    "mask=causal",
    "mask=banded_causal mask.window=3",
    "mask=strided mask.stride=3",
    "mask=block_local mask.block_size=5",
    "mask.pattern=[banded_causal,causal] mask=banded_causal mask.window=2 size.n_layers=4",
)
DROPOUTS = ("embedding", "attention", "residual")
# Changes of one part of `model=gpt`.
VARIANTS = (
    *(f"model={model}" for model in MODELS),
    *(f"model.positions={positions}" for positions in ("none", "learned", "sinusoidal", "alibi")),
    *(f"model.activation={activation}" for activation in ("relu", "gelu", "swiglu")),
    *(f"model.feed_forward={kind}" for kind in ("none", "one_layer")),
    "model.norm=none model.activation=gelu",
    "model.norm_placement=post",
    "model.logit_softcap=15",
    "model.attention=uniform model.positions=learned",
    "size.d_key=6 size.d_value=20 size.d_ff=24",
)


def require_causal(built: torch.nn.Module, masks_NxTxT: list[torch.Tensor], T: int) -> None:
    """Check by gradient that each output depends exactly on the positions that its masks show in all layers."""
    randomize_weights(built)
    embedded: list[torch.Tensor] = []
    built.token_embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))  # type: ignore[union-attr,operator]
    logits = built(torch.randint(11, (1, T)))
    reachable = torch.eye(T)
    for mask_TxT in masks_NxTxT:
        reachable = ((mask_TxT.float() @ reachable + reachable) > 0).float()
    for t in range(T):
        (gradient,) = torch.autograd.grad(logits[0, t].square().sum(), embedded[0], retain_graph=True)
        influence = gradient[0].abs().sum(-1)
        assert (influence[t + 1 :] == 0).all(), f"position {t} depends on later positions"
        assert torch.equal(influence > 0, reachable[t] > 0), f"position {t} does not depend on what its mask shows"


def require_causal_model(*overrides: str) -> None:
    config = make_config(*overrides, "size.context_length=12", "model.dropout=0")
    layer_masks = [masks.dense_mask(mask, 12) for mask, layers in layers_by_mask(config) for _ in layers]
    require_causal(build(config, 11), layer_masks, 12)


@pytest.mark.parametrize("mask", mostly_slow(CAUSAL_MASKS, quick=CAUSAL_MASKS[:2]))
@pytest.mark.parametrize("model", MODELS)
def test_outputs_do_not_depend_on_later_inputs(model: str, mask: str) -> None:
    require_causal_model(f"model={model}", *mask.split())


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_causal(variant: str) -> None:
    require_causal_model(*variant.split())


@pytest.mark.parametrize("mask", mostly_slow([CAUSAL_MASKS[0], CAUSAL_MASKS[-1]], quick=CAUSAL_MASKS[:1]))
@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung != "ladder/bigram"])
def test_ladder_models_are_causal(rung: str, mask: str) -> None:
    changes = {"ladder/scaled_up": ("size.d_model=24",), "ladder/mlp": ("model.window=12",)}
    require_causal_model(f"experiment={rung}", *changes.get(rung, ()), *mask.split())


def test_logits_do_not_depend_on_the_input_length() -> None:
    built = build(make_config("size.context_length=12"), 11).eval()
    randomize_weights(built)
    tokens = torch.randint(11, (2, 12))
    torch.testing.assert_close(built(tokens[:, :5]), built(tokens)[:, :5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "vocab_size", "expected"),
    [
        # V C + T C + N (12 C^2 + 13 C) + 2 C, with a tied head
        (("model=gpt2", "size=tiny"), 65, 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 13 * 128) + 2 * 128),
        (("model=gpt2", "size=small"), 65, 10_770_816),
        (("model=gpt2", "size=gpt2"), 50_257, 124_439_808),
        # 2 V C + 12 N C^2
        (("model=gpt", "size=tiny"), 65, 2 * 65 * 128 + 4 * 12 * 128**2),
    ],
)
def test_parameter_count_matches_the_formula(overrides: tuple[str, ...], vocab_size: int, expected: int) -> None:
    with torch.device("meta"):
        built = Transformer(make_config(*overrides), vocab_size)
    assert count_parameters(built) == expected


@pytest.mark.parametrize(
    ("size", "expected"), [("gpt2_medium", 354_823_168), ("gpt2_large", 774_030_080), ("gpt2_xl", 1_557_611_200)]
)
def test_gpt2_sizes_match_the_published_ones(size: str, expected: int) -> None:
    with torch.device("meta"):
        assert count_parameters(Transformer(make_config("model=gpt2", f"size={size}"), 50_257)) == expected


@pytest.mark.parametrize("model", MODELS)
def test_initial_loss_is_that_of_a_uniform_guess(model: str) -> None:
    built = build(make_config(f"model={model}"), 65)
    tokens = torch.randint(65, (8, 65))
    loss = next_token_loss(built(tokens[:, :-1]), tokens[:, 1:]).item()
    assert loss == pytest.approx(math.log(65), abs=0.1)


def test_softcap_bounds_the_logits() -> None:
    plain, capped = build(make_config(), 11), build(make_config("model.logit_softcap=2"), 11)
    for built in (plain, capped):
        randomize_weights(built)
    tokens = torch.randint(11, (2, 8))
    assert plain(tokens).abs().max() > 2
    torch.testing.assert_close(capped(tokens), 2 * torch.tanh(plain(tokens) / 2))


@pytest.mark.parametrize(
    ("positions", "expected"),
    [("none", True), ("learned", False), ("sinusoidal", False), ("rotary", False), ("alibi", False)],
)
def test_positions_alone_encode_order_without_a_mask(positions: str, expected: bool) -> None:
    built = build(make_config("mask=none", f"model.positions={positions}"), 11).eval()
    randomize_weights(built)
    tokens = torch.randint(11, (1, 9))
    last, shuffled = (built(row)[0, -1] for row in (tokens, torch.cat([tokens[:, :8].flip(1), tokens[:, 8:]], dim=1)))
    assert torch.allclose(last, shuffled, atol=1e-5) == expected


@pytest.mark.parametrize(
    "place", ["model.embedding_dropout", "model.attention_dropout", "model.residual_dropout", "model.dropout"]
)
def test_dropout_applies_in_each_place(place: str) -> None:
    built = build(make_config(f"{place}=0.5"), 11)
    randomize_weights(built)
    tokens = torch.randint(11, (1, 64))
    assert not torch.equal(built(tokens), built(tokens))
    built.eval()
    assert torch.equal(built(tokens), built(tokens))
    without = build(make_config("model.dropout=0.5", *(f"model.{name}_dropout=0" for name in DROPOUTS)), 11)
    assert torch.equal(without(tokens), without(tokens)), "the setting of a place overrides model.dropout"


def test_masks_within_documents_hide_other_documents() -> None:
    config = make_config("mask.within_documents=true", "size.context_length=12")
    built = build(config, 11).eval()
    randomize_weights(built)
    tokens = torch.randint(11, (2, 12))
    documents = torch.tensor([[0] * 5 + [1] * 7, [3] * 9 + [4] * 3])
    together = built(tokens, documents)
    for row, (begin, end) in ((0, (0, 5)), (1, (0, 9))):
        torch.testing.assert_close(together[row, begin:end], built(tokens[row : row + 1, begin:end])[0])
    assert not torch.allclose(together[0, 5:], built(tokens)[0, 5:])
    changed = tokens.clone()
    changed[0, :5] = (changed[0, :5] + 1) % 11
    assert torch.equal(built(changed, documents)[0, 5:], together[0, 5:])


@pytest.mark.parametrize("head", ["model.tie_embeddings=true", "model.tie_embeddings=false"])
def test_head_bias_is_added_to_the_logits(head: str) -> None:
    plain, biased = build(make_config(head), 11), build(make_config(head, "model.head_bias=true"), 11)
    (name,) = set(biased.state_dict()) - set(plain.state_dict())
    assert not biased.state_dict()[name].any(), "initialized to zero"
    randomize_weights(biased)
    plain.load_state_dict({key: value for key, value in biased.state_dict().items() if key != name})
    tokens = torch.randint(11, (2, 8))
    torch.testing.assert_close(biased(tokens), plain(tokens) + biased.state_dict()[name])


def test_gpt3_has_no_biases_in_attention() -> None:
    built = build(make_config("model=gpt3"), 11)
    biases = {name for name, _ in built.named_parameters() if name.endswith("bias")}
    assert "head.bias" in biases
    assert "blocks.0.feed_forward.projection.bias" in biases
    assert not [name for name in biases if ".attention." in name]


# Losses on fixed tokens after 0, 1 and 2 optimizer steps. To change a row on purpose, run this test, copy the losses
# from its message, and give the reason in the commit.
GOLDEN = {
    "model=gpt optimizer=adamw": (4.174389, 3.972469, 3.744359),
    "model=gpt2 optimizer=adamw": (4.254592, 3.159377, 2.902582),
    "model=gpt3 optimizer=adamw": (4.134684, 2.850008, 2.599848),
    "experiment=ladder/bigram": (4.174388, 4.172418, 4.170449),
    "experiment=ladder/bigram_positions": (4.379811, 4.332768, 4.285921),
    "experiment=ladder/uniform_average": (4.354877, 4.330339, 4.305916),
    "experiment=ladder/single_head": (4.305674, 4.266141, 4.227275),
    "experiment=ladder/multi_head": (4.280961, 4.242142, 4.203763),
    "experiment=ladder/feed_forward": (4.187311, 4.167114, 4.147243),
    "experiment=ladder/blocks": (4.180570, 4.175640, 4.170957),
    "experiment=ladder/residual": (4.658743, 4.379188, 4.114420),
    "experiment=ladder/layer_norm": (4.401646, 4.270916, 4.143755),
    "experiment=ladder/dropout": (4.413551, 4.331726, 4.224858),
    "experiment=ladder/scaled_up": (4.383955, 3.509123, 2.710824),
    "experiment=ladder/mlp": (4.236654, 4.049069, 3.863373),
    "experiment=ladder/rnn": (4.248227, 4.211764, 4.175428),
    "experiment=ladder/gru": (4.193044, 4.171460, 4.149942),
    "experiment=ladder/lstm": (4.181986, 4.170123, 4.158313),
    "experiment=ladder/ngram_gpt": (4.174389, 3.179418, 1.912372),
}


@pytest.mark.parametrize(
    "override", [*(f"model={model} optimizer=adamw" for model in MODELS), *(f"experiment={rung}" for rung in RUNGS)]
)
def test_losses_of_the_first_steps_are_golden(override: str) -> None:
    config = make_config(*override.split())
    built = build(config, 65)
    optimizer = optimizers.build(config.optimizer, built)
    T = min(64, config.size.context_length)
    tokens = torch.arange(4 * (T + 1)).view(4, T + 1) * 7 % 65
    found = []
    torch.manual_seed(0)  # dropout
    for _ in range(3):
        loss = next_token_loss(built(tokens[:, :-1]), tokens[:, 1:])
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found == pytest.approx(GOLDEN[override], rel=2e-4), f"found {found}; see the comment above GOLDEN"


def test_softcap_is_computed_in_fp32_under_autocast() -> None:
    built = build(make_config("model=gpt2", "model.logit_softcap=4"), 50).eval()
    torch.nn.init.normal_(built.token_embedding.weight)  # logits that reach the cap
    tokens_BxT = torch.randint(50, (2, 8))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        capped = built(tokens_BxT)
        built.logit_softcap = None
        logits = built(tokens_BxT)
    assert (capped.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(capped, 4 * torch.tanh(logits.float() / 4))
    assert capped.abs().max() > 3
