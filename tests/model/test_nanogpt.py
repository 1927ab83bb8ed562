"""The baselines experiment=nanogpt_cpu and nanogpt_gpu, against nanoGPT's formulas written out with other functions."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nanolm.config.run import Config
from nanolm.config.scheduler import warmup_of
from nanolm.data import corpus as corpora
from nanolm.data.tokens import cache as token_cache
from nanolm.model import count
from nanolm.model.build import build, count_parameters
from nanolm.training import schedules
from nanolm.training.optimizers import build as optimizers
from nanolm.training.precision import NumberFormat
from nanolm.training.step import MicroBatch, update
from tests.helpers import make_config

Weights = dict[str, torch.Tensor]

VOCAB_SIZE = 65
# n_layer, n_head, n_embd, block_size, batch_size, max_iters, dropout and parameters of nanoGPT, positions included. It
# prints 10.65M for the second, which leaves them out.
SHAPES = {
    "nanogpt_cpu": (4, 4, 128, 64, 12, 2000, 0.0, 804_096),
    "nanogpt_gpu": (6, 6, 384, 256, 64, 5000, 0.2, 10_745_088),
}
# nanoGPT's name of each of our weights; a block's begin with h.N.
NAMES = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "attention_norm": "ln_1",
    "attention.query_key_value": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.expansion": "mlp.c_fc",
    "feed_forward.projection": "mlp.c_proj",
    "final_norm": "ln_f",
}


def in_nanogpt(name: str) -> str:
    """Return nanoGPT's name of a weight, without the prefix "transformer."."""
    parts = name.removesuffix(".weight").split(".")
    prefix = f"h.{parts[1]}." if parts[0] == "blocks" else ""
    return f"{prefix}{NAMES['.'.join(parts[2:] if prefix else parts)]}.weight"


def draw_weights(config: Config, seed: int) -> Weights:
    """Draw weights with the names, shapes and initialization of nanoGPT's model.py, without biases."""
    size, generator = config.size, torch.Generator().manual_seed(seed)
    width, n_layers = size.d_model, size.n_layers
    shapes = {"wte": (VOCAB_SIZE, width), "wpe": (size.context_length, width)}
    for n in range(n_layers):
        shapes |= {f"h.{n}.attn.c_attn": (3 * width, width), f"h.{n}.attn.c_proj": (width, width)}
        shapes |= {f"h.{n}.mlp.c_fc": (4 * width, width), f"h.{n}.mlp.c_proj": (width, 4 * width)}
    weights = {f"{name}.weight": 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in weights:
        if name.endswith("c_proj.weight"):
            weights[name] /= math.sqrt(2 * n_layers)
    norms = ["ln_f", *(f"h.{n}.ln_{k}" for n in range(n_layers) for k in (1, 2))]
    # Not ones, so that each scale matters.
    return weights | {f"{name}.weight": 1 + 0.1 * torch.randn(width, generator=generator) for name in norms}


def oracle_logits(weights: Weights, n_heads: int, tokens_BxT: torch.Tensor) -> torch.Tensor:
    """Compute the logits as in nanoGPT's model.py with its manual attention, without dropout."""

    def norm(x_BxTxC: torch.Tensor, name: str) -> torch.Tensor:
        centred = x_BxTxC - x_BxTxC.mean(-1, keepdim=True)
        return weights[f"{name}.weight"] * centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)

    B, T = tokens_BxT.shape
    x_BxTxC = weights["wte.weight"][tokens_BxT] + weights["wpe.weight"][:T]
    C = x_BxTxC.shape[-1]
    for n in range(sum(name.endswith("c_attn.weight") for name in weights)):
        block = f"h.{n}."
        qkv = norm(x_BxTxC, f"{block}ln_1") @ weights[f"{block}attn.c_attn.weight"].T
        q, k, v = (part.view(B, T, n_heads, C // n_heads).transpose(1, 2) for part in qkv.split(C, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(C // n_heads)
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        heads = (scores @ v).transpose(1, 2).reshape(B, T, C)
        x_BxTxC = x_BxTxC + heads @ weights[f"{block}attn.c_proj.weight"].T
        hidden = norm(x_BxTxC, f"{block}ln_2") @ weights[f"{block}mlp.c_fc.weight"].T
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x_BxTxC = x_BxTxC + hidden @ weights[f"{block}mlp.c_proj.weight"].T
    return norm(x_BxTxC, "ln_f") @ weights["wte.weight"].T


def with_weights(config: Config, weights: Weights) -> torch.nn.Module:
    """Build our model with the weights of nanoGPT's."""
    model = build(config, VOCAB_SIZE)
    names = [name for name, _ in model.named_parameters()]
    assert {in_nanogpt(name) for name in names} == set(weights)
    model.load_state_dict({name: weights[in_nanogpt(name)] for name in names})
    return model


@pytest.mark.parametrize("experiment", SHAPES)
def test_nanogpt_has_its_shapes_and_budget(experiment: str) -> None:
    config = make_config(f"experiment={experiment}")
    size, trainer = config.size, config.trainer
    n_layers, n_heads, d_model, context, batch, steps, dropout, n_parameters = SHAPES[experiment]
    assert (size.n_layers, size.n_heads, size.d_model, size.context_length) == (n_layers, n_heads, d_model, context)
    assert (trainer.batch_size, trainer.max_steps, trainer.clip_norm) == (batch, steps, 1.0)
    assert (config.model.dropout, trainer.sampling.name) == (dropout, "windows")  # type: ignore[attr-defined]
    assert count.total(count.parameters(config, VOCAB_SIZE)) == n_parameters
    if experiment == "nanogpt_cpu":
        assert count_parameters(build(config, VOCAB_SIZE)) == n_parameters


def test_nanogpt_logits_equal_those_of_its_formulas() -> None:
    config = make_config("experiment=nanogpt_cpu")
    weights = draw_weights(config, seed=1)
    # Larger than at initialization, so that attention is not uniform.
    weights = {name: 5 * weight if weight.dim() == 2 else weight for name, weight in weights.items()}
    tokens_BxT = torch.randint(VOCAB_SIZE, (3, 64), generator=torch.Generator().manual_seed(2))
    logits = with_weights(config, weights).eval()(tokens_BxT)
    torch.testing.assert_close(logits, oracle_logits(weights, 4, tokens_BxT), atol=1e-5, rtol=0)


def test_nanogpt_initialization_has_its_variances() -> None:
    config = make_config("experiment=nanogpt_cpu")
    torch.manual_seed(0)
    drawn, expected = build(config, VOCAB_SIZE), draw_weights(config, seed=3)
    for name, weight in drawn.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            assert weight.std().item() == pytest.approx(expected[in_nanogpt(name)].std().item(), rel=0.03)
            assert abs(weight.mean().item()) < 0.002


@pytest.mark.parametrize("experiment", SHAPES)
def test_nanogpt_learning_rate_equals_its_get_lr(experiment: str) -> None:
    config = make_config(f"experiment={experiment}")
    steps = config.trainer.max_steps
    assert warmup_of(config.scheduler, steps) == 100
    for step in range(0, steps, 7):
        if step < 100:
            expected = 1e-3 * (step + 1) / (100 + 1)
        else:
            expected = 1e-4 + 0.5 * (1 + math.cos(math.pi * (step - 100) / (steps - 100))) * (1e-3 - 1e-4)
        assert config.optimizer.lr * schedules.factor(step, steps, config.scheduler) == pytest.approx(expected)


def test_nanogpt_updates_equal_those_of_its_optimizer() -> None:
    """AdamW with weight decay of every tensor with two dimensions, and clipping to norm 1.

    The weight decay is a hundred times nanoGPT's, so that three updates show it.
    """
    assert make_config("experiment=nanogpt_cpu").optimizer.weight_decay == 0.1
    config = make_config("experiment=nanogpt_cpu", "size.n_layers=1", "size.d_model=32", "optimizer.weight_decay=10")
    weights = draw_weights(config, seed=4)
    model = with_weights(config, weights)
    optimizer = optimizers.build(config.optimizer, model)
    theirs = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    groups = [
        {"params": [w for w in theirs.values() if w.dim() >= 2], "weight_decay": 10.0},
        {"params": [w for w in theirs.values() if w.dim() < 2], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    tokens = torch.randint(VOCAB_SIZE, (3, 2, 65), generator=torch.Generator().manual_seed(5))
    number_format = NumberFormat(config.trainer.precision, torch.device("cpu"))
    for tokens_BxT1 in tokens:
        inputs, targets = tokens_BxT1[:, :-1], tokens_BxT1[:, 1:]
        update(model, optimizer, [MicroBatch(inputs, targets)], number_format, config.trainer.clip_norm)
        oracle.zero_grad()
        F.cross_entropy(oracle_logits(theirs, 4, inputs).flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        oracle.step()
    for name, weight in model.named_parameters():
        # Adam divides by the gradient's size, so that a tiny one may differ in its first digits.
        difference = (weight - theirs[in_nanogpt(name)]).abs()
        assert difference.mean() < 1e-7
        assert difference.max() < 1e-4


def test_nanogpt_splits_the_text_as_it_does(shakespeare: Path) -> None:
    config = make_config("experiment=nanogpt_cpu", f"dataset.path={shakespeare}")
    corpus = corpora.load(config.dataset)
    tokenizer = token_cache.fit_tokenizer(corpus, config)
    streams = token_cache.tokenize(corpus, tokenizer, config)
    text = shakespeare.read_text()
    order = {character: token for token, character in enumerate(sorted(set(text)))}
    cut = int(0.9 * len(text))
    assert tokenizer.vocab_size == VOCAB_SIZE
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert streams[split].tokens[:].tolist() == [order[character] for character in part]


def test_shakespeare_experiments_have_nanogpts_size() -> None:
    for own, baseline in (("cpu", "cpu"), ("gpu", "gpu"), ("sprint", "cpu")):
        config, theirs = (make_config(f"experiment={e}") for e in (f"shakespeare_{own}", f"nanogpt_{baseline}"))
        n_parameters, expected = (count.total(count.parameters(c, VOCAB_SIZE)) for c in (config, theirs))
        assert n_parameters == pytest.approx(expected, rel=0.05)
        assert config.size.context_length == theirs.size.context_length
        if own != "sprint":
            assert config.trainer.max_steps * config.trainer.batch_size == (
                theirs.trainer.max_steps * theirs.trainer.batch_size
            )
