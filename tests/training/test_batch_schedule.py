"""Training with batch-size and context-length schedules: shapes, counts of tokens, and exact resume."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from nanolm.config.batch_schedule import stages, total_tokens
from nanolm.model import count
from nanolm.runs.directory import RunDirectory
from nanolm.training.dry_run import dry_run
from nanolm.training.trainer import train, training
from tests.helpers import (
    RESUME_OVERRIDES,
    Nanolm,
    final_state,
    has_reached_step,
    is_same_state,
    kill_process_group,
    mostly_slow,
    resumes_exactly,
    sigterm_at_step,
    small_config,
    untimed_rows,
    wait_until,
)

SCHEDULES = ("trainer.batch_size_schedule=[[0.2,2]]", "trainer.context_length_schedule=[[0.4,8],[0.5,5]]")


@pytest.mark.parametrize("sampling", mostly_slow(["windows", "epochs", "lines", "documents"], quick=("epochs",)))
def test_every_sampling_resumes_exactly(sampling: str, small_text: Path, tmp_path: Path) -> None:
    overrides = [f"trainer.sampling={sampling}", *SCHEDULES, "trainer.average_last=0.8"]
    if sampling == "lines":
        overrides.append("dataset.split_by=line")
    assert resumes_exactly(small_text, tmp_path, *overrides)


@pytest.mark.slow
@pytest.mark.parametrize("stop", range(1, 16))
def test_run_resumes_exactly_from_every_step(stop: int, small_text: Path, tmp_path: Path) -> None:
    config = small_config(
        small_text, *RESUME_OVERRIDES, *SCHEDULES, "trainer.sampling=epochs", "trainer.average_last=0.5"
    )
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    for run in (whole, parted):
        run.path.mkdir()
    train(config, whole)
    with sigterm_at_step(stop):
        train(config, parted)
    train(config, parted)
    assert untimed_rows(parted) == untimed_rows(whole)
    assert is_same_state(final_state(parted), final_state(whole))


@pytest.mark.slow
def test_killed_run_resumes_with_the_batches_it_would_have_had(nanolm: Nanolm, small_text: Path) -> None:
    from tests.helpers import LONG_RUN

    line = (
        *LONG_RUN,
        f"dataset.path={small_text}",
        "trainer.sampling=epochs",
        "trainer.average_last=0.7",
        "trainer.batch_size_schedule=[[0.25,1],[0.65,3]]",
        "trainer.context_length_schedule=[[0.45,7]]",
    )
    assert nanolm("train", *line, "hydra.run.dir=whole").returncode == 0
    run = RunDirectory(nanolm.folder / "killed")
    for step in (130, 260, 380, 520):
        process = nanolm.start(
            "train", *line, "hydra.run.dir=killed", *(["resume=killed"] if run.config.exists() else [])
        )
        wait_until(lambda step=step: has_reached_step(run, step), process)  # type: ignore[misc]
        kill_process_group(process)
    assert nanolm("train", "resume=killed").returncode == 0
    whole = RunDirectory(nanolm.folder / "whole")
    assert untimed_rows(run) == untimed_rows(whole)
    assert is_same_state(final_state(run), final_state(whole))


def test_run_counts_the_tokens_of_its_schedules(small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, *SCHEDULES, "trainer.max_steps=20", "trainer.log_every=1")
    estimate = dry_run(config, RunDirectory(tmp_path / "dry"))
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    shapes = Counter(tuple(step.batch[0].inputs_BxT.shape) for step in training(config, run))
    assert shapes == {stage.shape: stage.end - stage.start for stage in stages(config)}
    summary = run.read_summary()
    assert summary.tokens == estimate.tokens == total_tokens(config)
    assert summary.flops_per_token is not None
    assert summary.vocab_size is not None
    by_context = count.flops_by_context(config, summary.vocab_size)
    flops = sum(
        stage.steps_from(0) * stage.tokens_per_step * by_context[stage.context_length] for stage in stages(config)
    )
    assert estimate.flops == pytest.approx(flops, rel=1e-9)
    assert summary.tokens * summary.flops_per_token == pytest.approx(flops, rel=1e-4)
    assert "batches of 2 x 8 until step 4, 4 x 8 until step 8, 4 x 5 until step 10" in run.log.read_text()


def test_evaluation_uses_the_whole_context(small_text: Path, tmp_path: Path) -> None:
    """The loss of weights that are not trained is the same with a schedule."""
    losses = []
    for name, schedule in (("constant", ()), ("short", ("trainer.context_length_schedule=[[0.9,2]]",))):
        run = RunDirectory(tmp_path / name)
        run.path.mkdir()
        config = small_config(small_text, *schedule, "model=gpt2", "trainer.max_steps=2", "optimizer.lr=1e-30")
        losses.append(train(config, run).summary.final_val_loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("mask", "model"),
    mostly_slow(
        [
            ("causal", "bigram"),
            ("causal", "gpt"),
            ("document", "gpt2"),
            *((mask, "gpt") for mask in ("banded_causal", "strided", "prefix", "block_local", "none", "banded")),
        ],
        quick=[("block_local", "gpt")],
    ),
)
def test_every_mask_trains_with_short_contexts(mask: str, model: str, small_text: Path, tmp_path: Path) -> None:
    windowed = ["mask.window=4"] if mask.startswith("banded") else []
    config = small_config(
        small_text, f"mask={mask}", *windowed, f"model={model}", *SCHEDULES, "trainer.max_steps=10", "size.n_layers=1"
    )
    assert train(config, RunDirectory(tmp_path)).summary.step == 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_run_has_one_kernel_per_shape(small_text: Path, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    overrides = ("trainer.context_length_schedule=[[0.5,8]]", "trainer.max_steps=8", "model=gpt2", "size.n_layers=1")
    losses = []
    for name, compile_ in (("eager", "false"), ("compiled", "true")):
        run = RunDirectory(tmp_path / name)
        run.path.mkdir()
        config = small_config(small_text, *overrides, f"trainer.compile={compile_}")
        train(config, run)
        losses.append([row["loss"] for row in untimed_rows(run)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    # And one of the evaluation, which computes no gradients.
    assert counters["stats"]["unique_graphs"] == len({stage.shape for stage in stages(config)}) + 1
