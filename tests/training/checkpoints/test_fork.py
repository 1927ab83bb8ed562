"""Forks: new runs that start from a checkpoint of another run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.config.yaml_io import load_yaml
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.checkpoints.fork import Parent, adapt_state
from nanolm.training.trainer import train
from tests.helpers import Nanolm, final_state, is_same_state, small_config, untimed_rows

LINE = (
    "model.dropout=0.3",
    "trainer.max_steps=20",
    "trainer.eval_every=5",
    "trainer.save_every=5",
    "trainer.keep_last=null",
)


def parent_of(folder: Path, text: Path, *overrides: str) -> RunDirectory:
    run = RunDirectory(folder / "parent")
    run.path.mkdir()
    train(small_config(text, *LINE, *overrides), run)
    return run


def forked(parent: RunDirectory, step: int, text: Path, *overrides: str) -> RunDirectory:
    run = RunDirectory(parent.path.parent / "fork")
    run.path.mkdir()
    begins_at = Parent(parent, load_yaml(parent.config), checkpoint.at_step(parent.checkpoints, step))
    train(small_config(text, *LINE, *overrides), run, parent=begins_at)
    return run


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "schedule_free"])
def test_fork_without_changes_trains_like_its_parent(optimizer: str, small_text: Path, tmp_path: Path) -> None:
    overrides = (f"optimizer={optimizer}", "trainer.ema_decay=null")
    parent = parent_of(tmp_path, small_text, *overrides)
    before = {path: path.read_bytes() for path in parent.path.rglob("*") if path.is_file()}
    fork = forked(parent, 10, small_text, *overrides)
    assert untimed_rows(fork) == [row for row in untimed_rows(parent) if row["step"] > 10]
    assert is_same_state(final_state(fork)[0], final_state(parent)[0])
    assert {path: path.read_bytes() for path in parent.path.rglob("*") if path.is_file()} == before


def test_fork_records_its_parent_and_can_be_resumed(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    fork = forked(parent, 10, small_text, "optimizer.lr=1e-4", "trainer.max_steps=15")
    pointer = fork.read_summary().parent
    assert (pointer["run"], pointer["step"]) == (str(parent.path), 10)
    manifest = checkpoint.at_step(parent.checkpoints, 10).manifest
    assert pointer["weights"] == manifest["files"][checkpoint.WEIGHTS]["sha256"]
    train(small_config(small_text, *LINE, "optimizer.lr=1e-4"), fork)
    assert fork.read_summary().parent == pointer
    assert [row["step"] for row in untimed_rows(fork) if row["split"] == "val"] == [15, 20]


def test_fork_uses_its_own_settings(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text, "optimizer=adamw")
    line = ("optimizer.lr=1e-4", "optimizer.weight_decay=0.3", "optimizer.beta2=0.9", "scheduler=constant", "seed=7")
    fork = forked(parent, 10, small_text, "optimizer=adamw", *line)
    assert {row["lr"] for row in untimed_rows(fork) if row["split"] == "train"} == {1e-4}
    groups = final_state(fork)[1]["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}
    # The optimizer state of the parent is kept.
    moments = final_state(fork)[1]["optimizer"]["state"]
    assert {int(of["step"]) for of in moments.values()} == {20}


def test_fork_with_another_optimizer_has_fresh_state(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    fork = forked(parent, 10, small_text, "optimizer=lion")
    assert final_state(fork)[1]["scalars"]["step"] == 20
    assert math.isfinite(fork.read_summary().final_val_loss)


def test_adapt_state_keeps_counters_and_resets_losses(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    tree = checkpoint.at_step(parent.checkpoints, 10).load_state()
    config = small_config(small_text, *LINE)
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    kept: dict[str, Any] = adapt_state(tree, config, config, optimizer)
    assert kept["scalars"]["step"] == 10
    assert kept["scalars"]["tokens"] == tree["scalars"]["tokens"]
    assert kept["scalars"]["best_val_loss"] == math.inf
    assert "rng" in kept
    other = small_config(small_text, *LINE, "seed=8")
    assert "rng" not in adapt_state(tree, config, other, optimizer)


def test_fork_with_another_shape_is_refused(small_text: Path, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, small_text)
    with pytest.raises(SettingsError, match="the parent's weights do not fit the model of these settings: "):
        forked(parent, 10, small_text, "size.d_model=32")


def test_fork_by_the_command_line(nanolm: Nanolm, small_text: Path) -> None:
    first = ("train", "model=bigram", "optimizer=adamw", "logger=none", "dataset=text", f"dataset.path={small_text}")
    steps = ("trainer.max_steps=20", "trainer.save_every=10", "trainer.sample_tokens=0")
    assert nanolm(*first, *steps, "hydra.run.dir=outputs/a").returncode == 0
    refused = nanolm("train", "resume=outputs/a", "optimizer.lr=0.01", "trainer.max_steps=30")
    assert refused.returncode == 2
    assert "add fork=true" in refused.stderr
    fork = ("train", "fork=true", "optimizer.lr=0.01", "trainer.max_steps=30", "hydra.run.dir=outputs/b")
    done = nanolm(*fork, "resume=outputs/a/checkpoints/step-00000010")
    assert done.returncode == 0, done.stderr
    assert "forks outputs/a at step 10 with optimizer.lr: " in done.stderr
    run = RunDirectory(nanolm.folder / "outputs" / "b")
    assert load_yaml(run.config).model.name == "bigram"
    again = nanolm(*fork, "resume=outputs/a")
    assert (again.returncode, "the directory already contains a run" in again.stderr) == (2, True)
    assert nanolm("train", "fork=true", "resume=outputs/a", "trainer.max_steps=21").returncode == 0
    assert len(list(nanolm.folder.glob("outputs/*_bigram_text"))) == 1, "it is named for what it trains"
    for wrong, said in (
        (("resume=auto", "fork=true"), "resume is auto"),
        (("resume=outputs/a", "fork=true"), "would start at step 20, and trainer.max_steps is 20"),
        (("resume=outputs/nowhere", "fork=true"), "there is no folder outputs/nowhere"),
    ):
        done = nanolm("train", *wrong)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
