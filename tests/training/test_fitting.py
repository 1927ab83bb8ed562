"""A model that is counted makes a run like any other."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanolm.config.model import ModelConfig
from nanolm.config.run import Config
from nanolm.config.yaml_io import load_yaml
from nanolm.data.tokens.stream import Tokens, chunks
from nanolm.errors import CheckpointError, RunError
from nanolm.inference.evaluate import evaluate
from nanolm.inference.generate import generate
from nanolm.inference.load import load_run
from nanolm.model.build import build
from nanolm.model.ngram import Ngram
from nanolm.registry import MODELS
from nanolm.runs.directory import RunDirectory
from nanolm.runs.samples import read_samples
from nanolm.runs.summary import Summary, write_summary
from nanolm.training import trainer
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.trainer import train
from tests.helpers import Nanolm, final_state, is_same_state, small_config, untimed_rows


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "run").mkdir()
    return RunDirectory(tmp_path / "run")


@pytest.mark.parametrize("overrides", [(), ("trainer.sampling=lines",), ("dataset.split_by=line",)])
def test_fitted_run_is_one_step_with_exact_losses(
    overrides: tuple[str, ...], small_text: Path, run: RunDirectory
) -> None:
    outcome = train(small_config(small_text, "model=ngram", "trainer.sample_tokens=20", *overrides), run)
    summary = run.read_summary()
    assert summary == outcome.summary
    assert (summary.status, summary.step, summary.best_step) == ("completed", 1, 1)
    assert (summary.parameters, summary.tokens) == (0, summary.train_tokens)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(row["split"], row["step"]) for row in lines] == [("train", 1), ("val", 1)]
    assert set(lines[0]) == {"step", "split", "loss", "tokens", "seconds", "tokens_per_second"}
    assert set(lines[1]) == {"step", "split", "loss", "bits_per_byte", "tokens", "seconds"}
    assert lines[1]["loss"] == summary.best_val_loss == summary.final_val_loss
    assert [outcome.sample] == [sample.text for sample in read_samples(run.samples)]
    loaded = load_run(str(run.path))
    assert isinstance(loaded.model, Ngram)
    assert summary.entries == len(loaded.model.keys) > 100
    for split, row in zip(("train", "val"), lines, strict=True):
        assert evaluate(loaded, split)["loss"] == pytest.approx(row["loss"], rel=1e-6)
    if not overrides:
        assert evaluate(loaded, stride=1)["loss"] < summary.best_val_loss
    assert generate(loaded, "7 and", max_new_tokens=10) == generate(loaded, "7 and", max_new_tokens=10)


def test_fitted_bigram_equals_the_baseline(small_text: Path, run: RunDirectory) -> None:
    config = small_config(small_text, "model=ngram", "model.order=2", "model.smoothing=add_k")
    summary = train(config, run).summary
    assert summary.best_val_loss == pytest.approx(summary.baseline_losses["counted_bigram"], rel=1e-6)


def test_run_killed_before_its_checkpoint_fits_again(
    small_text: Path, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_text, "model=ngram", "trainer.sample_tokens=20")
    (tmp_path / "whole").mkdir()
    whole = RunDirectory(tmp_path / "whole")
    train(config, whole)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "take_snapshot", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, run)
    monkeypatch.undo()
    assert train(config, run).summary.status == "completed"
    assert untimed_rows(run) == untimed_rows(whole)
    assert run.samples.read_bytes() == whole.samples.read_bytes()
    assert is_same_state(final_state(run), final_state(whole))


def test_run_killed_after_its_checkpoint_is_completed(
    small_text: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_text, "model=ngram")
    before = train(config, run).summary
    write_summary(run.summary, Summary(status="running"))
    monkeypatch.setattr(Ngram, "fit", None)
    after = train(config, run).summary
    for key in ("status", "step", "entries", "best_val_loss", "tokens"):
        assert getattr(after, key) == getattr(before, key), key
    assert len(untimed_rows(run)) == 2


def test_signal_lets_the_fit_finish(small_text: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Ngram.fit

    def interrupted(self: Ngram, tokens: Tokens) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return fit(self, tokens)

    monkeypatch.setattr(Ngram, "fit", interrupted)
    outcome = train(small_config(small_text, "model=ngram"), run)
    assert (outcome.summary.status, outcome.exit_status) == ("completed", 143)
    assert load_run(str(run.path)).step == 1


def test_registered_model_with_fit_is_fitted(small_text: Path, run: RunDirectory) -> None:
    MODELS.register("frequencies")(frequencies)
    config = small_config(small_text, "trainer.max_steps=50", "trainer.compile=true")
    config.model = ModelConfig(name="frequencies")
    summary = train(config, run).summary
    assert (summary.status, summary.step, summary.entries) == ("completed", 1, summary.vocab_size)
    assert summary.best_val_loss == pytest.approx(summary.baseline_losses["counted_unigram"], rel=1e-5)
    assert evaluate(load_run(str(run.path)))["loss"] == pytest.approx(summary.best_val_loss)


def frequencies(config: Config, vocab_size: int) -> torch.nn.Module:
    class Frequencies(torch.nn.Module):
        counts: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("counts", torch.ones(vocab_size))

        def fit(self, tokens: Tokens) -> int:
            for chunk in chunks(tokens):
                self.counts += torch.from_numpy(np.bincount(chunk, minlength=vocab_size))
            return vocab_size

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.counts.log().expand(*tokens.shape, vocab_size)

    return Frequencies()


def test_table_of_another_model_is_refused(small_text: Path, run: RunDirectory) -> None:
    train(small_config(small_text, "model=ngram", "model.order=4"), run)
    run.config.write_text(run.config.read_text().replace("order: 4", "order: 2"))
    with pytest.raises(RunError, match=r"config\.yaml has changed .*: model\.order: 4 -> 2"):
        load_run(str(run.path))
    found, _ = checkpoint.newest(run.checkpoints)
    assert found is not None
    other = build(load_yaml(run.config), run.read_summary().vocab_size)
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*not the n-grams of order 2"):
        found.load_weights(other)


def test_command_fits_sweeps_and_skips_a_finished_run(nanolm: Nanolm, small_text: Path) -> None:
    line = ("model=ngram", "dataset=text", f"dataset.path={small_text}", "size.context_length=16", "logger=none")
    done = nanolm("train", *line, "trainer.sample_tokens=40", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    for part in (
        "completed at step 1",
        "val loss, best",
        "\nsample\n",
        " entries, ",
        "nanolm generate run",
    ):
        assert part in done.stdout
    for part in ("parameters", "resume="):
        assert part not in done.stdout
    assert "a table of counts" in done.stderr
    for again in ((), ("trainer.max_steps=9000",)):
        done = nanolm("train", "resume=run", *again)
        assert (done.returncode, done.stdout) == (0, "")
        assert "nothing to do: run is completed at step 1" in done.stderr
    done = nanolm("train", "-m", *line, "model.order=1,2", "model.smoothing=add_k,kneser_ney", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    runs = [RunDirectory(path) for path in sorted((nanolm.folder / "sweep").glob("model.order=*"))]
    losses = {run.path.name.rpartition("-")[0]: run.read_summary().best_val_loss for run in runs}
    assert all(map(math.isfinite, losses.values()))
    ones, twos = ([loss for name, loss in losses.items() if f"order={order}" in name] for order in (1, 2))
    assert (len(ones), len(twos)) == (2, 2)
    assert max(twos) < min(ones)


def test_loop_refuses_fitted_models(small_text: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "loop", None)
    assert train(small_config(small_text, "model=ngram", "trainer.precision=bf16"), run).summary.status == "completed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_fit_equals_cpu_fit(small_text: Path, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        config = small_config(small_text, "model=ngram", "model.order=5", f"trainer.device={device}")
        found.append(train(config, RunDirectory(tmp_path / device)).summary.best_val_loss)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
