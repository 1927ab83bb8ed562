from pathlib import Path

import pytest

from nanolm.errors import DivergedError, SettingsError
from nanolm.runs.directory import RunDirectory
from nanolm.training.dry_run import dry_run
from nanolm.training.trainer import train
from tests.helpers import Nanolm, small_config


def test_estimate_matches_the_run(small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, "trainer.max_steps=70", "trainer.eval_every=20", "trainer.save_every=30")
    run = RunDirectory(tmp_path / "run")
    found = dry_run(config, run)
    assert not any(run.path.iterdir())
    summary = train(config, run).summary
    assert found.parameters == summary.parameters
    assert found.tokens == summary.tokens
    assert found.flops == summary.tokens * summary.flops_per_token
    assert found.epochs == pytest.approx(summary.tokens / summary.train_tokens)
    assert {name: times for name, (times, _) in found.durations.items()} == {"steps": 70, "evaluations": 4, "saves": 3}
    sizes = {sum(path.stat().st_size for path in folder.iterdir()) for folder in run.checkpoints.iterdir()}
    assert all(abs(size - found.checkpoint_bytes) < 2000 for size in sizes)
    assert found.memory["weights"] == 4 * found.parameters
    assert found.lrs[0][0] == 0
    assert found.lrs[-1][0] == 69
    assert found.seconds > 0


def test_estimate_of_a_resumed_run_counts_remaining_steps(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    train(small_config(small_text, "trainer.max_steps=30"), run)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    found = dry_run(small_config(small_text, "trainer.max_steps=50"), run)
    assert (found.durations["steps"][0], found.tokens) == (20, 20 * 4 * 16)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_fitted_model_is_refused(small_text: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="fitted in one pass"):
        dry_run(small_config(small_text, "model=ngram"), RunDirectory(tmp_path))


def test_divergence_is_reported(small_text: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    config = small_config(small_text, "optimizer.lr=1e30", "trainer.max_steps=20")
    with pytest.raises(DivergedError, match=r"diverged while its speed was measured[\s\S]*use a lower optimizer\.lr"):
        dry_run(config, run)
    assert not run.path.exists()


def test_batch_that_exceeds_memory_is_refused(small_text: Path, tmp_path: Path) -> None:
    config = small_config(small_text, "trainer.batch_size=2000000000")
    with pytest.raises(SettingsError, match=r"needs at least [\d.,]+ GiB of memory[\s\S]*trainer\.batch_size"):
        dry_run(config, RunDirectory(tmp_path / "run"))


def test_command_prints_the_estimate_and_leaves_no_folder(nanolm: Nanolm, small_text: Path) -> None:
    done = nanolm("train", "dataset=text", f"dataset.path={small_text}", "logger=none", "size=ladder", "dry_run=true")
    assert done.returncode == 0, done.stderr
    for word in ("parameters", "tokens per parameter", "memory (formula)", "lr", "speed", "MFU", "estimated time"):
        assert word in done.stdout
    assert not (nanolm.folder / "outputs").exists()
