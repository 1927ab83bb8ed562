import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.config.run import Config
from nanolm.config.yaml_io import load_yaml
from nanolm.errors import DataError, DiskError, DivergedError, RunError, SettingsError
from nanolm.registry import MODELS, OPTIMIZERS
from nanolm.runs.directory import RunDirectory
from nanolm.runs.samples import read_samples
from nanolm.training import trainer
from nanolm.training.checkpoints import files as checkpoint
from nanolm.training.stop import StopRequest
from nanolm.training.trainer import Outcome, train
from tests.helpers import final_state, is_same_state, mostly_slow, sigterm_at_step, small_config, untimed_rows


def run_of(config: Config, folder: Path, **keywords: Any) -> Outcome:
    return train(config, RunDirectory(folder), **keywords)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_run_writes_all_files_of_the_layout(small_text: Path, folder: Path) -> None:
    config = small_config(small_text, "trainer.max_steps=30", "trainer.eval_every=10", "trainer.sample_tokens=20")
    outcome = run_of(config, folder, choices={"model": "gpt"})
    run = RunDirectory(folder)
    assert load_yaml(run.config) == config
    steps = [(row["split"], row["step"]) for row in untimed_rows(run)]
    assert steps == [(split, step) for step in (10, 20, 30) for split in ("train", "val")]
    assert set(json.loads(run.metrics.read_text().splitlines()[0])) == {
        "step", "split", "loss", "lr", "grad_norm", "tokens", "seconds", "tokens_per_second",
    }  # fmt: skip
    summary = run.read_summary()
    assert summary == outcome.summary
    assert summary.status == "completed"
    assert summary.tokens == 30 * 4 * 16
    assert summary.best_val_loss == min(row["loss"] for row in untimed_rows(run) if row["split"] == "val")
    assert summary.bits_per_byte == pytest.approx(summary.best_val_loss / math.log(2))
    for key in ("parameters", "seed", "versions", "git", "corpus", "tokenizer", "seconds", "tokens_per_second"):
        assert getattr(summary, key) is not None, key
    samples = read_samples(run.samples)
    assert [sample.step for sample in samples] == [10, 20, 30]
    assert outcome.sample == samples[-1].text
    assert "val loss" in run.log.read_text()


def test_loss_decreases(small_text: Path, folder: Path) -> None:
    config = small_config(small_text, "trainer.max_steps=200", "trainer.eval_every=100", "optimizer.lr=1e-2")
    summary = run_of(config, folder).summary
    assert summary.best_val_loss < 0.8 * summary.baseline_losses["counted_bigram"]


def test_last_two_and_best_checkpoints_are_kept(small_text: Path, folder: Path) -> None:
    overrides = ("trainer.max_steps=60", "trainer.eval_every=10", "trainer.save_every=5", "optimizer.lr=0.05")
    summary = run_of(small_config(small_text, *overrides), folder).summary
    kept = sorted(path.name for path in RunDirectory(folder).checkpoints.iterdir())
    assert kept == sorted({f"step-{step:08d}" for step in (summary.best_step, 55, 60)})


@pytest.mark.parametrize("stop_at", mostly_slow([1, 9, 10, 11, 25], quick=[9, 10]))
@pytest.mark.parametrize(
    "overrides", [(), ("optimizer=sgd", "trainer.gradient_accumulation=2", "trainer.precision=bf16")]
)
def test_stopped_and_resumed_run_equals_uninterrupted_run(
    stop_at: int, overrides: tuple[str, ...], small_text: Path, tmp_path: Path
) -> None:
    common = ("trainer.max_steps=30", "trainer.eval_every=10", "trainer.save_every=7", "trainer.log_every=3")
    config = small_config(small_text, "model.dropout=0.3", "trainer.sample_tokens=5", *common, *overrides)
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    for run in (whole, parted):
        run.path.mkdir()
    train(config, whole)
    with sigterm_at_step(stop_at):
        outcome = train(config, parted)
    assert outcome.exit_status == 143
    assert outcome.summary.status == "interrupted"
    assert parted.read_summary().step == stop_at
    torch.rand(3)  # what happened elsewhere in the process has no influence
    outcome = train(config, parted)
    assert outcome.summary.status == "completed"
    assert untimed_rows(parted) == untimed_rows(whole)
    assert parted.samples.read_bytes() == whole.samples.read_bytes()
    assert is_same_state(final_state(parted), final_state(whole))
    assert final_state(whole)[1]["scalars"]["step"] == 30


def test_signal_in_the_last_step_leaves_a_completed_run(small_text: Path, folder: Path) -> None:
    with sigterm_at_step(5):
        outcome = run_of(small_config(small_text, "trainer.max_steps=5"), folder)
    assert (outcome.summary.status, outcome.exit_status) == ("completed", 143)


@pytest.mark.parametrize("part", ["optimizer", "rng", "loss_sum"])
def test_resume_test_detects_missing_state(
    part: str, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_text, "model.dropout=0.3", "trainer.max_steps=20", "trainer.save_every=7")
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    for run in (whole, parted):
        run.path.mkdir()
    train(config, whole)
    with sigterm_at_step(8):
        train(config, parted)
    load = checkpoint.Checkpoint.load_state

    def forgetful(self: checkpoint.Checkpoint) -> Any:
        state = load(self)
        if part == "optimizer":
            state["optimizer"]["state"] = {}
        elif part == "rng":
            state["rng"]["torch"] = torch.Generator().manual_seed(1).get_state()
        else:
            state["scalars"][part] -= 1
        return state

    monkeypatch.setattr(checkpoint.Checkpoint, "load_state", forgetful)
    train(config, parted)
    monkeypatch.undo()
    assert not (is_same_state(final_state(parted), final_state(whole)) and untimed_rows(parted) == untimed_rows(whole))


def test_evaluation_frequency_does_not_change_training(small_text: Path, tmp_path: Path) -> None:
    found = []
    for every in (1, 7):
        run = RunDirectory(tmp_path / f"every{every}")
        run.path.mkdir()
        train(small_config(small_text, "model.dropout=0.3", "trainer.max_steps=20", f"trainer.eval_every={every}"), run)
        found.append([row for row in untimed_rows(run) if row["split"] == "train"])
    assert found[0] == found[1]


def test_gradient_accumulation_changes_only_rounding(small_text: Path, tmp_path: Path) -> None:
    losses = []
    for parts in (1, 4):
        run = RunDirectory(tmp_path / f"parts{parts}")
        run.path.mkdir()
        outcome = train(small_config(small_text, "trainer.max_steps=20", f"trainer.gradient_accumulation={parts}"), run)
        losses.append(outcome.summary.final_val_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_resume_skips_and_names_a_damaged_checkpoint(
    small_text: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(folder)
    train(small_config(small_text, "trainer.max_steps=20", "trainer.save_every=5"), run)
    newest = run.checkpoints / "step-00000020"
    content = bytearray((newest / checkpoint.WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 4
    (newest / checkpoint.WEIGHTS).write_bytes(bytes(content))
    outcome = train(small_config(small_text, "trainer.max_steps=30", "trainer.save_every=5"), run)
    said = capsys.readouterr().err
    assert "skipped a damaged checkpoint" in said
    assert "step-00000020: model.safetensors has been altered" in said
    assert "resumes from step 15" in said
    assert outcome.summary.step == 30
    assert (run.checkpoints / "step-00000020.replaced-1").is_dir()


def test_divergence_keeps_and_names_the_last_good_checkpoint(small_text: Path, folder: Path) -> None:
    run = RunDirectory(folder)
    config = small_config(
        small_text, "trainer.save_every=1", "trainer.max_steps=50", "optimizer.lr=1e20", "trainer.clip_norm=null"
    )
    with pytest.raises(DivergedError, match=r"diverged at step \d+: loss [\s\S]*last good checkpoint: step-"):
        train(config, run)
    summary = run.read_summary()
    assert summary.status == "diverged"
    weights, state = final_state(run)
    assert state["scalars"]["step"] == summary.step
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_resume_with_another_text_is_refused(small_text: Path, folder: Path) -> None:
    run = RunDirectory(folder)
    train(small_config(small_text, "trainer.max_steps=5"), run)
    small_text.write_text(small_text.read_text() + "one more line\n")
    with pytest.raises(RunError, match="the corpus is not the one that the run was trained with"):
        train(small_config(small_text, "trainer.max_steps=10"), run)


def test_bad_data_leaves_an_empty_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="needs 17"):
        run_of(small_config(tmp_path / "short.txt"), folder)
    with pytest.raises(SettingsError, match="no device"):
        run_of(small_config(tmp_path / "short.txt", "trainer.device=cuda:99"), folder)
    assert list(folder.iterdir()) == []


def test_failure_is_recorded_in_the_summary(small_text: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", fail)
    with pytest.raises(DiskError, match="cannot be written: No space left on device"):
        run_of(small_config(small_text, "trainer.max_steps=5"), folder)
    summary = RunDirectory(folder).read_summary()
    assert summary.status == "failed"
    assert summary.error is not None
    assert summary.error.startswith("DiskError: the run cannot be written: No space left on device\n")


@pytest.mark.parametrize("model", ["bigram", "gpt", "gpt2"])
def test_every_model_trains(model: str, small_text: Path, folder: Path) -> None:
    screen = io.StringIO()
    summary = run_of(
        small_config(small_text, f"model={model}", "trainer.max_steps=10", "tokenizer=byte"),
        folder,
        show_bar=True,
        bar_file=screen,
    ).summary
    assert summary.final_val_loss < math.log(256)
    assert "10/10" in screen.getvalue()


def test_registered_model_and_optimizer_train(small_text: Path, folder: Path) -> None:
    MODELS.register("unigram_of_my_own")(unigram)
    OPTIMIZERS.register("adagrad_of_my_own")(adagrad)
    config = small_config(small_text, "trainer.max_steps=10")
    config.model.name, config.optimizer.name = "unigram_of_my_own", "adagrad_of_my_own"
    assert run_of(config, folder).summary.parameters < 100


def unigram(config: Config, vocab_size: int) -> torch.nn.Module:
    class Unigram(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(vocab_size))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(*tokens.shape, vocab_size)

    return Unigram()


def adagrad(model: torch.nn.Module, config: Any) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=config.lr)


def test_resumed_run_continues_its_wandb_run(small_text: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = RunDirectory(folder)
    ids = []
    for steps in (10, 20):
        train(small_config(small_text, "logger=wandb", f"trainer.max_steps={steps}"), run)
        ids.append(run.read_summary().wandb_id)
    assert ids[0] == ids[1]
    assert len(list(run.wandb.glob(f"offline-run-*-{ids[0]}"))) >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compile_changes_only_rounding(small_text: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in ("true", "false"):
        run = RunDirectory(tmp_path / compiled)
        run.path.mkdir()
        train(small_config(small_text, "trainer.max_steps=20", f"trainer.compile={compiled}"), run)
        losses.append([row["loss"] for row in untimed_rows(run)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_first_step_is_slow_with_compile_or_a_gpu() -> None:
    assert not trainer.has_slow_first_step(False, torch.device("cpu"))
    assert trainer.has_slow_first_step(True, torch.device("cpu"))
    assert trainer.has_slow_first_step(False, torch.device("cuda", 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("path", ["sdpa", "flex"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("compiled", ["trainer.compile=false", "trainer.compile=true", "trainer.cuda_graphs=true"])
def test_gpu_run_resumes_bit_for_bit(
    compiled: str, optimizer: str, path: str, small_text: Path, tmp_path: Path
) -> None:
    line = (
        compiled,
        f"optimizer={optimizer}",
        f"trainer.attention_backend={path}",
        f"model.dropout={0 if path == 'flex' else 0.1}",
        "trainer.device=cuda",
        f"trainer.gradient_accumulation={1 if 'cuda_graphs' in compiled else 2}",
        "trainer.max_steps=20",
        "trainer.log_every=1",
        "trainer.eval_every=10",
        "size.d_model=32",
    )
    config = small_config(small_text, *line)
    results = []
    for name, stops in (("whole", ()), ("again", ()), ("parted", (7, 13))):
        run = RunDirectory(tmp_path / name)
        run.path.mkdir()
        for stop in stops:
            with sigterm_at_step(stop):
                train(config, run)
        summary = train(config, run).summary
        assert (summary.step, summary.deterministic) == (20, True)
        timed = ("seconds", "tokens_per_second", "mfu")
        found = [{key: value for key, value in row.items() if key not in timed} for row in untimed_rows(run)]
        results.append((found, final_state(run)))
    for found, state in results[1:]:
        assert found == results[0][0]
        assert is_same_state(state, results[0][1])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("mask=banded",), ["mask=banded is not causal: position 0 sees position 1"]),
        (("mask.pattern=[causal,prefix]",), ["mask=prefix (layer 1) is not causal: position 0 sees position 1"]),
        (("mask=banded_causal", "mask.pattern=SL"), []),
        (("model=bigram", "mask=none"), []),
    ],
)
def test_noncausal_mask_is_announced_once(
    small_text: Path, folder: Path, overrides: tuple[str, ...], expected: list[str]
) -> None:
    run_of(small_config(small_text, "trainer.max_steps=12", "trainer.eval_every=6", *overrides), folder)
    said = [line for line in (folder / "train.log").read_text().splitlines() if "not causal" in line]
    assert len(said) == len(expected)
    for line, words in zip(said, expected, strict=True):
        assert f"{words}; the loss is not that of next-token prediction" in line


def test_run_with_a_mask_pattern_resumes_exactly(small_text: Path, tmp_path: Path) -> None:
    pattern = ("mask=banded_causal", "mask.window=3", "mask.pattern=[causal,banded_causal]", "trainer.sample_tokens=20")
    config = small_config(small_text, "trainer.max_steps=8", *pattern)
    whole, parted = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "parted")
    for run in (whole, parted):
        run.path.mkdir()
    train(config, whole)
    with sigterm_at_step(5):
        train(config, parted)
    train(load_yaml(parted.config), parted)
    assert load_yaml(parted.config) == config
    assert untimed_rows(parted) == untimed_rows(whole)
    assert parted.samples.read_bytes() == whole.samples.read_bytes()
    assert is_same_state(final_state(parted), final_state(whole))


def test_pruned_run_is_recorded_and_can_be_resumed(small_text: Path, folder: Path, tmp_path: Path) -> None:
    config = small_config(small_text, "trainer.max_steps=40", "trainer.eval_every=10", "trainer.save_every=100")
    asked = []

    def should_prune(step: int, loss: float) -> bool:
        asked.append((step, loss))
        return step == 20

    outcome = run_of(config, folder, stop=StopRequest(should_prune))
    run = RunDirectory(folder)
    assert (outcome.exit_status, outcome.summary.status, outcome.summary.step) == (0, "pruned", 20)
    assert asked == [(row["step"], row["loss"]) for row in untimed_rows(run) if row["split"] == "val"]
    outcome = run_of(config, folder)
    assert outcome.summary.status == "completed"
    (tmp_path / "straight").mkdir()
    run_of(config, tmp_path / "straight")
    assert untimed_rows(run) == untimed_rows(RunDirectory(tmp_path / "straight"))
    assert is_same_state(final_state(run), final_state(RunDirectory(tmp_path / "straight")))
