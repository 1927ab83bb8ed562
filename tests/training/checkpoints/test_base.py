"""Runs with low-rank adapters: their forks, checkpoints and frozen base."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanolm.cli.checkpoints import list_checkpoints
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import CheckpointError, NanolmError, SettingsError
from nanolm.inference.evaluate import evaluate
from nanolm.inference.generate import generate
from nanolm.inference.load import load_run
from nanolm.model.lora import adapters, merged_state_dict
from nanolm.runs.directory import RunDirectory
from nanolm.runs.occupancy import require_startable
from nanolm.training.checkpoints import base as base_files
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.base import Base
from nanolm.training.checkpoints.fork import Parent
from nanolm.training.trainer import train
from tests.helpers import (
    final_state,
    is_same_state,
    mostly_slow,
    sigterm_at_step,
    small_config,
    untimed_rows,
)

LINE = ("model=gpt2", "trainer.max_steps=4", "trainer.eval_every=4", "trainer.save_every=4", "scheduler=constant")
ADAPTED = (*LINE, "model.lora.rank=3", "trainer.max_steps=8", "model.dropout=0.2", "model.lora.dropout=0.1")


def new_run(folder: Path, name: str) -> RunDirectory:
    run = RunDirectory(folder / name)
    run.path.mkdir()
    return run


def parent_of(folder: Path, text: Path, *overrides: str) -> RunDirectory:
    run = new_run(folder, "parent")
    train(small_config(text, *LINE, *overrides), run)
    return run


def fork_of(parent: RunDirectory, text: Path, name: str, *overrides: str) -> RunDirectory:
    run = new_run(parent.path.parent, name)
    found = checkpoint.newest(parent.checkpoints)[0]
    assert found is not None
    train(small_config(text, *overrides), run, parent=Parent(parent, load_yaml(parent.config), found))
    return run


def weights_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    """The weights of the latest checkpoint, with adapters merged."""
    return merged_state_dict(load_run(str(run.path), "last", "cpu").model)


def is_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_fork_with_adapters_keeps_its_parents_weights(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    run = fork_of(parent, small_text, "run", *ADAPTED, "trainer.ema_decay=0.9")
    model = load_run(str(run.path), "last", "cpu").model
    before = load_file(checkpoint.newest(parent.checkpoints)[0].path / checkpoint.WEIGHTS)
    assert is_equal(load_file(run.base), before)
    assert run.base.samefile(checkpoint.newest(parent.checkpoints)[0].path / checkpoint.WEIGHTS)
    saved = run.checkpoints / "step-00000008"
    assert set(load_file(saved / checkpoint.WEIGHTS)) == set(adapters(model))
    assert set(load_file(saved / checkpoint.AVERAGES)) == set(adapters(model))
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(tensor.abs().sum() > 0 for name, tensor in adapters(model).items())
    summary = run.read_summary()
    assert summary.trained_parameters == sum(tensor.numel() for tensor in adapters(model).values())
    assert summary.parameters == summary.trained_parameters + parent.read_summary().parameters
    assert summary.base == summary.parent["weights"] == checkpoint.newest(run.checkpoints)[0].base
    averaged = load_run(str(run.path), "last", "cpu", weights="ema").model
    assert not is_equal(merged_state_dict(averaged), merged_state_dict(model))
    assert evaluate(load_run(str(run.path), "last", "cpu"))["loss"] == pytest.approx(summary.final_val_loss, abs=1e-6)


@pytest.mark.parametrize("optimizer", mostly_slow(["adamw", "muon", "schedule_free"], quick=["muon"]))
def test_run_with_adapters_resumes_exactly(optimizer: str, small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    line = (*ADAPTED, f"optimizer={optimizer}", "trainer.log_every=1")
    averaged = () if optimizer == "schedule_free" else ("trainer.ema_decay=0.9",)
    whole = fork_of(parent, small_text, "whole", *line, *averaged)
    with sigterm_at_step(2):
        resumed = fork_of(parent, small_text, "resumed", *line, *averaged)
    assert resumed.read_summary().step == 6
    shutil.rmtree(parent.path)
    moved = RunDirectory(tmp_path / "moved")
    shutil.copytree(resumed.path, moved.path)
    train(small_config(small_text, *line, *averaged), moved)
    assert untimed_rows(moved) == untimed_rows(whole)
    assert is_same_state(final_state(moved), final_state(whole))
    assert generate(load_run(str(moved.path), device="cpu"), "1 and", max_new_tokens=5)


def test_fork_continues_adapters_or_merges_them(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    run = fork_of(parent, small_text, "run", *ADAPTED)
    frozen = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "trainer.max_steps=9", "trainer.save_every=1")
    same = fork_of(run, small_text, "same", *ADAPTED, *frozen, "model.lora.dropout=0")
    assert same.read_summary().base == run.read_summary().base
    before = final_state(run)[0]
    assert all(torch.allclose(tensor, before[name], atol=1e-20) for name, tensor in final_state(same)[0].items())
    merged = weights_of(run)
    for name, changes in (("other", ("model.lora.rank=2", "model.lora.targets=[projection]")), ("full", ())):
        line = (*ADAPTED, *changes) if changes else LINE
        fork = fork_of(run, small_text, name, *line, *frozen)
        assert all(torch.allclose(tensor, merged[key], atol=1e-20) for key, tensor in weights_of(fork).items())
        assert fork.base.exists() == (name == "other")
        assert (fork.read_summary().base is None) == (name == "full")
    assert is_equal(load_file(RunDirectory(tmp_path / "other").base), merged)


def test_base_that_is_missing_or_changed_is_refused(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    run = fork_of(parent, small_text, "run", *ADAPTED)
    content = run.base.read_bytes()
    weights = checkpoint.newest(parent.checkpoints)[0].path / checkpoint.WEIGHTS
    longer = small_config(small_text, *ADAPTED, "trainer.max_steps=9")
    for damaged, problem in (
        (None, "the file is missing"),
        (content[:-1] + b"!", "the file has changed: its SHA-256 is not"),
        (b"", "the file has changed"),
    ):
        # A link to the parent's weights.
        run.base.unlink(missing_ok=True)
        if damaged is not None:
            run.base.write_bytes(damaged)
        for use in (
            lambda: load_run(str(run.path), device="cpu"),
            lambda: train(longer, run),
            lambda: fork_of(run, small_text, f"fork{len(list(tmp_path.iterdir()))}", *ADAPTED, "trainer.max_steps=9"),
        ):
            with pytest.raises(CheckpointError) as caught:
                use()
            assert problem in caught.value.found
            assert caught.value.where == str(run.base)
            assert str(weights) in caught.value.hint
        assert any("base.safetensors" in fault for entry in list_checkpoints(run) for fault in entry.faults)
    # As the hint says.
    shutil.copy(weights, run.base)
    assert load_run(str(run.path), device="cpu").step == 8
    assert not any(entry.faults for entry in list_checkpoints(run))


def test_adapters_without_a_trained_base_are_refused(small_text: Path, tmp_path: Path) -> None:
    run = new_run(tmp_path, "run")
    with pytest.raises(SettingsError, match="the run starts from scratch: adapters need trained weights"):
        train(small_config(small_text, *ADAPTED), run)
    assert not list(run.path.iterdir())


@pytest.mark.parametrize("can_link", [True, False])
def test_base_is_written_atomically(can_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "base.safetensors"
    source.write_bytes(b"weights")
    base = Base(base_files._sha256(source), source)
    if not can_link:
        monkeypatch.delattr(os, "link")
        monkeypatch.setattr(os, "link", _refuse, raising=False)
    target.write_bytes(b"left by a start that was killed")
    for _ in range(2):
        base.write(target)
        assert target.read_bytes() == b"weights"
        assert target.samefile(source) == can_link
    source.unlink()
    source.write_bytes(b"changed")
    target.unlink()
    with pytest.raises(NanolmError, match="has changed since it was read"):
        base.write(target)
    assert list(tmp_path.iterdir()) == [source]


def _refuse(*_: object) -> None:
    raise OSError("no hard links")


def test_start_that_was_killed_before_its_config_is_repeated(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    run = fork_of(parent, small_text, "run", *ADAPTED)
    left = new_run(tmp_path, "left")
    for path in (run.base, run.tokenizer):
        shutil.copy(path, left.path)
    # As written before the first step.
    started = run.summary.read_text().replace('"status": "completed"', '"status": "running"')
    started = started.replace('"step": 8,\n  "tokens"', '"step": null,\n  "tokens"')
    left.summary.write_text(started.replace('"has_checkpoint": true', '"has_checkpoint": false'))
    require_startable(left)
    left.base.write_bytes(b"something else")
    with pytest.raises(NanolmError, match=r"it holds base\.safetensors"):
        require_startable(left)
