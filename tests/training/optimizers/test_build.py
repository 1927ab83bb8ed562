import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nanolm.compose import config_folder
from nanolm.config.checks import check
from nanolm.errors import SettingsError
from nanolm.model.build import build
from nanolm.runs.directory import RunDirectory
from nanolm.training.optimizers import build as optimizers
from nanolm.training.trainer import train
from tests.helpers import SMALL, make_config, make_optimizer_config, mostly_slow

NAMES = sorted(path.stem for path in config_folder().glob("optimizer/*.yaml"))


def test_parameters_are_grouped_by_role() -> None:
    model = build(make_config("model=gpt2", "model.tie_embeddings=false", "size.n_layers=1"), 11)
    groups = optimizers.parameter_groups(model, make_optimizer_config("adamw", "weight_decay=0.3"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {group["name"]: sorted(names[id(p)] for p in group["params"]) for group in groups}
    assert found == {
        "hidden": [
            "blocks.0.attention.projection.weight",
            "blocks.0.attention.query_key_value.weight",
            "blocks.0.feed_forward.expansion.weight",
            "blocks.0.feed_forward.projection.weight",
        ],
        "head": ["head.weight"],
        "embedding": ["position_embedding.weight", "token_embedding.weight"],
        "norm": sorted(name for name in names.values() if "norm" in name),
        "bias": sorted(name for name in names.values() if name.endswith(".bias") and "norm" not in name),
    }
    assert {group["name"] for group in groups if group["weight_decay"] == 0.3} == {"hidden", "head"}
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}


def test_decay_embeddings_adds_weight_decay_to_embeddings() -> None:
    model = build(make_config("model=gpt2", "size.n_layers=1"), 11)
    config = make_optimizer_config("adamw", "weight_decay=0.3", "decay_embeddings=true")
    optimizer = optimizers.build(config, model)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"hidden": 0.3, "embedding": 0.3, "norm": 0.0, "bias": 0.0}
    assert re.search(r"embedding [\d,]+ \(decay 0\.3\)", optimizers.describe_groups(config, optimizer))


def test_tied_head_is_embedding_and_unknown_parameters_other() -> None:
    groups = optimizers.parameter_groups(
        build(make_config("model=gpt2", "model.head_bias=true"), 11), make_optimizer_config("adamw")
    )
    assert [group["name"] for group in groups] == ["hidden", "embedding", "norm", "bias"]
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
    model[1].weight = model[0].weight
    model.register_parameter("scale", nn.Parameter(torch.ones(3)))
    assert [group["name"] for group in optimizers.parameter_groups(model, make_optimizer_config("sgd"))] == [
        "embedding",
        "other",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_group_settings_are_applied_and_described(name: str) -> None:
    config = make_optimizer_config(name, "lr=0.004", "weight_decay=0.1", "lr_multipliers={embedding:0.5,head:0}")
    model = build(make_config("size.n_layers=1"), 11)
    optimizer = optimizers.build(config, model)
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "hidden": 0.004,
        "head": 0.0,
        "embedding": 0.002,
    }
    words = optimizers.describe_groups(config, optimizer)
    rules = ("muon, ", "adamw, ") if name == "muon" else ("", "")
    assert words == (
        f"{name}, lr 0.004: hidden 196,608 ({rules[0]}decay 0.1), head 1,408 ({rules[1]}lr 0, decay 0.1), "
        f"embedding 1,408 ({rules[1]}lr 0.002)"
    )


def test_mistyped_group_suggests_nearest_name() -> None:
    with pytest.raises(SettingsError, match=r"did you mean optimizer\.lr_multipliers\.embedding\?"):
        make_config("optimizer.lr_multipliers.embeding=0.5")
    (problem,) = check(make_config("optimizer.lr_multipliers.embedding=-1"))
    assert problem.found == "optimizer.lr_multipliers.embedding is -1.0, and must be at least 0"


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_minimizes_linear_regression(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = optimizers.build(
        make_config(f"optimizer={name}", "optimizer.lr=0.2", "optimizer.weight_decay=0").optimizer, model
    )
    x = torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    losses = []
    for _ in range(300):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


def test_adamw_step_matches_formula() -> None:
    """One step of Loshchilov and Hutter's algorithm 2, by hand."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 2.0)
    config = make_optimizer_config("adamw", "lr=0.1", "weight_decay=0.5", "eps=1e-8")
    optimizer = optimizers.build(config, layer)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1 * 1.0, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradient_are_unchanged(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    optimizer = optimizers.build(make_optimizer_config(name), model)
    before = model[1].weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        model[0](torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
    assert torch.equal(before, model[1].weight)


@pytest.mark.parametrize("name", mostly_slow(NAMES, quick=("adafactor", "schedule_free")))
def test_default_lr_trains_a_small_model(name: str, small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    length = ("trainer.max_steps=200", "trainer.eval_every=200", "trainer.save_every=200", "size.d_model=32")
    config = make_config(*SMALL, "dataset=text", f"dataset.path={small_text}", f"optimizer={name}", *length)
    summary = train(config, run).summary
    assert summary.final_val_loss < 0.8 * summary.baseline_losses["counted_unigram"]


@pytest.mark.slow
def test_building_muon_does_not_import_the_compiler() -> None:
    code = """if True:
        import sys, torch
        from nanolm.compose import compose_command
        from nanolm.training.optimizers.build import build

        optimizer = build(compose_command(["optimizer=muon"]).config.optimizer, torch.nn.Linear(2, 2))
        optimizer.load_state_dict(optimizer.state_dict())
        print("torch._dynamo" in sys.modules)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
