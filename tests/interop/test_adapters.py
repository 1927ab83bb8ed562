"""Exports of runs with low-rank adapters, which are merged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanolm.config.yaml_io import load_yaml
from nanolm.inference.load import load_run
from nanolm.interop.export import export
from nanolm.model.lora import adapters, merged_state_dict
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.trainer import train
from tests.helpers import small_config

LINE = ("trainer.max_steps=2", "scheduler=constant", "tokenizer=byte", "size.context_length=12")


@pytest.fixture
def adapted(request: pytest.FixtureRequest, small_text: Path, tmp_path: Path) -> Path:
    """A run with trained adapters."""
    line = (*LINE, *getattr(request, "param", ("model=gpt2",)))
    runs = [RunDirectory(tmp_path / name) for name in ("parent", "adapted")]
    for run in runs:
        run.path.mkdir()
    train(small_config(small_text, *line), runs[0])
    found, _ = checkpoint.newest(runs[0].checkpoints)
    assert found is not None
    parent = Parent(runs[0], load_yaml(runs[0].config), found)
    changes = ("model.lora.rank=3", "optimizer.lr=0.1", "trainer.max_steps=8")
    train(small_config(small_text, *line, *changes), runs[1], parent=parent)
    return runs[1].path


@pytest.mark.slow
def test_export_merges_adapters(adapted: Path, tmp_path: Path) -> None:
    export(adapted, tmp_path / "out", format="safetensors")
    model = load_run(str(adapted), device="cpu").model
    exported = load_file(tmp_path / "out" / "model.safetensors")
    merged = merged_state_dict(model)
    assert exported.keys() == merged.keys() == model.state_dict().keys() - adapters(model).keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in merged.items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["nanolm"]["model.lora.rank"] is None
    n_parameters = sum(tensor.numel() for tensor in exported.values())
    assert f"| parameters | {n_parameters:,} |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "adapted", [("model=gpt2",), ("model=gpt",), ("model=llama", "size.n_kv_heads=1")], indirect=True
)
def test_merged_export_has_the_logits_of_the_adapted_model(adapted: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export(adapted, tmp_path / "out")
    model = load_run(str(adapted), device="cpu").model
    tokens_BxT = torch.randint(256, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(tokens_BxT).logits
    assert (found - model(tokens_BxT)).abs().max() < 1e-4
    base = load_run(str(adapted.parent / "parent"), device="cpu").model
    assert (found - base(tokens_BxT)).abs().max() > 1e-2
