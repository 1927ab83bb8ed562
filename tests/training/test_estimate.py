import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nanolm.config.batch_schedule import Stage
from nanolm.config.trainer import Sampling
from nanolm.data.batches import draw
from nanolm.runs.directory import RunDirectory
from nanolm.training.distributed.ranks import SINGLE_PROCESS
from nanolm.training.estimate import estimated_loss
from nanolm.training.evaluation import split_loss
from nanolm.training.setup import Setup, prepare
from nanolm.training.trainer import train
from tests.helpers import final_state, is_same_state, randomize_weights, resumes_exactly, small_config


def make_setup(text: Path, folder: Path, *overrides: str) -> Setup:
    setup = prepare(small_config(text, "model=gpt2", *overrides), RunDirectory(folder / "run"), SINGLE_PROCESS)
    randomize_weights(setup.state.model)
    return setup


def test_estimate_depends_on_weights_seed_split_and_step_only(small_text: Path, tmp_path: Path) -> None:
    setup = make_setup(small_text, tmp_path, "model.dropout=0.5")
    setup.state.step = 6
    estimate = estimated_loss(setup, "val", 3)
    torch.manual_seed(123)
    assert setup.state.model.training
    assert estimated_loss(setup, "val", 3) == estimate, "without dropout and random numbers of torch"
    assert estimated_loss(setup, "train", 3) != estimate
    setup.state.step = 7
    assert estimated_loss(setup, "val", 3) != estimate
    other_seed = dataclasses.replace(setup, config=dataclasses.replace(setup.config, seed=setup.config.seed + 1))
    other_seed.state.step = 6
    assert estimated_loss(other_seed, "val", 3) != estimate


def test_estimate_approaches_the_exact_loss(small_text: Path, tmp_path: Path) -> None:
    setup = make_setup(small_text, tmp_path)
    for split in ("train", "val"):
        few, many = (estimated_loss(setup, split, n_batches) for n_batches in (1, 256))
        assert many == pytest.approx(split_loss(setup, split), rel=0.02)
        assert few != many


def test_estimate_draws_other_batches_than_training(small_text: Path, tmp_path: Path) -> None:
    setup = make_setup(small_text, tmp_path)
    stream, seed = setup.streams["train"], setup.config.seed
    inputs, targets = draw(Sampling.windows, stream, Stage(0, 1, 4, 16), seed=seed, step=0)[:2]
    with torch.no_grad():
        logits = setup.state.model.eval()(torch.from_numpy(inputs)).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(targets).flatten())
    assert estimated_loss(setup, "train", 1) != pytest.approx(loss.item(), abs=1e-6)


def test_estimates_are_logged_and_never_change_training(
    small_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = []
    for n_batches in (0, 2):
        run = RunDirectory(tmp_path / str(n_batches))
        run.path.mkdir()
        steps = ("trainer.max_steps=4", "trainer.eval_every=2", f"trainer.estimate_batches={n_batches}")
        train(small_config(small_text, "model.dropout=0.3", *steps), run)
        rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        estimated = [row for row in rows if "estimated_loss" in row]
        assert [row["step"] for row in estimated] == ([2, 4] if n_batches else [])
        assert all(row["split"] == "val" and row["estimated_train_loss"] > 0 for row in estimated)
        assert [row["estimated_loss"] != row["loss"] for row in estimated] == [True] * len(estimated)
        printed = capsys.readouterr().out
        lines = [line for line in printed.splitlines() if line.startswith("step ")]
        assert all((" train estimate " in line and " val estimate " in line) == bool(n_batches) for line in lines)
        states.append(final_state(run))
    assert is_same_state(*states)


def test_estimates_resume_exactly(small_text: Path, tmp_path: Path) -> None:
    assert resumes_exactly(small_text, tmp_path, "trainer.estimate_batches=2")


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.sampling=epochs",),
        ("trainer.sampling=lines",),
        ("mask=document",),
        ("model=ngram", "model.order=3"),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_estimate_accepts_every_kind_of_rows_and_model(
    overrides: tuple[str, ...], small_text: Path, tmp_path: Path
) -> None:
    setup = prepare(small_config(small_text, *overrides), RunDirectory(tmp_path / "run"), SINGLE_PROCESS)
    if "model=ngram" in overrides:
        setup.state.model.fit(setup.streams["train"].tokens)  # type: ignore[operator]
    for split in ("train", "val"):
        loss = estimated_loss(setup, split, 40)
        assert np.isfinite(loss)
        assert loss == pytest.approx(split_loss(setup, split), rel=0.1)
