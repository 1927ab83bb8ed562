import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.compose import compose_command
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from tests.helpers import SMALL, Nanolm

LINE = (
    "model=bigram",
    "trainer.max_steps=4",
    "trainer.eval_every=2",
    "trainer.save_every=2",
    "trainer.sample_tokens=0",
)


@pytest.mark.slow
def test_foreign_files_are_not_overwritten(nanolm: Nanolm, small_text: Path) -> None:
    here = nanolm.folder
    (here / "C").mkdir()
    shutil.copy(small_text, here / "C" / "samples.jsonl")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    line = ("train", "logger=none", "dataset=text", "dataset.path=C/samples.jsonl", *LINE)
    for folder, said in (("C", r"it holds samples.jsonl"), (".", "it holds C"), ("", "hydra.run.dir is empty")):
        done = nanolm(*line, f"hydra.run.dir={folder}")
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
        assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    # A job of a sweep whose folder holds what is not its own fails, and leaves it.
    sweep = ("-m", "hydra.sweep.dir=S", "seed=1,2")
    assert nanolm(*line, *sweep).returncode == 0
    job = next(path for path in (here / "S").iterdir() if path.is_dir())
    shutil.rmtree(job)
    job.mkdir()
    (job / "metrics.jsonl").write_text("mine")
    done = nanolm(*line, *sweep)
    assert (done.returncode, "neither empty nor a run: it holds metrics.jsonl" in done.stderr) == (2, True), done.stderr
    assert [path.name for path in job.iterdir()] == ["metrics.jsonl"]
    # A run that lost its settings resumes only with the same ones.
    next(path for path in (here / "S").iterdir() if path.is_dir() and path != job).rename(here / "R")
    (here / "R" / "config.yaml").unlink()
    for words, said in (
        (("seed=3", "resume=auto"), "seed: "),
        (("optimizer=sgd", "resume=auto"), "optimizer.name: muon -> sgd"),
        (("seed=2",), "the directory already contains a run, whose config.yaml is missing"),
    ):
        done = nanolm(*line, "hydra.run.dir=R", "trainer.max_steps=6", *words)
        assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


@pytest.mark.parametrize(
    "word", ["hydra.run.dir=", "hydra.sweep.dir=", "resume=", "hydra.run.dir=' '", "hydra.run.dir=null", "resume=null"]
)
def test_empty_directory_setting_is_refused(word: str) -> None:
    key = word.split("=")[0]
    with pytest.raises(SettingsError, match=rf"{key} is empty\n[\s\S]*as in {key}=outputs/"):
        compose_command([word], multirun=key == "hydra.sweep.dir")


def test_settings_are_checked_before_torch_is_imported() -> None:
    code = (
        "import sys\nfrom nanolm.cli import main as cli\n"
        "try:\n cli.run(['train', 'trainer.max_step=1'])\nexcept ValueError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"


def test_train_evaluate_generate_and_resume(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=20", "trainer.eval_every=10")
    done = nanolm("train", *overrides, "trainer.sample_tokens=20")
    assert done.returncode == 0, done.stderr
    for part in ("completed at step 20", "val loss, best", "counted bigram", "\nsample\n", "resume="):
        assert part in done.stdout
    assert "val loss" in done.stderr
    assert "it/s" not in done.stderr, "no progress bar without a terminal"
    (path,) = (nanolm.folder / "outputs").iterdir()
    run = path.relative_to(nanolm.folder)
    assert path.name.endswith("_gpt_text")
    assert sorted(entry.name for entry in path.iterdir()) == sorted(
        [
            ".lock",
            "checkpoints",
            "config.yaml",
            "metrics.jsonl",
            "samples.jsonl",
            "summary.json",
            "tokenizer.json",
            "train.log",
        ]
    )

    done = nanolm("evaluate", run, "--split", "val", "--json")
    figures = json.loads(done.stdout)
    assert figures["loss"] == pytest.approx(RunDirectory(path).read_summary().best_val_loss, rel=1e-5)
    assert "val loss" in nanolm("evaluate", run).stdout

    done = nanolm(
        "generate", run, "--prompt", "12 and", "--max-new-tokens", "10", "--temperature", "0.8", "--top-k", "5"
    )
    assert done.stdout.startswith("12 and")
    assert len(done.stdout.rstrip("\n")) <= 16

    done = nanolm("train", f"resume={run}", "trainer.max_steps=30")
    assert "resumes from step 20 with trainer.max_steps: 20 -> 30" in done.stderr
    assert RunDirectory(path).read_summary().step == 30
    done = nanolm("train", f"resume={run}", "optimizer.lr=0.5")
    assert done.returncode == 2
    assert "the run was trained with optimizer.lr=0.01, and the command line sets 0.5" in done.stderr

    done = nanolm("train", *overrides[:-2], "trainer.max_steps=30", "trainer.eval_every=10", "resume=auto")
    assert len(list((nanolm.folder / "outputs").iterdir())) == 2, "a completed run is not resumed"


def test_resume_auto_finds_the_run_with_these_settings(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (*SMALL, "dataset=text", f"dataset.path={small_text}")
    for steps, expected in ((10, 1), (20, 1), (20, 2)):
        done = nanolm("train", *overrides, f"trainer.max_steps={steps}", "resume=auto")
        assert done.returncode == 0, done.stderr
        assert len(list((nanolm.folder / "outputs").iterdir())) == expected
    given = (*overrides, "hydra.run.dir=mine", "resume=auto")
    for steps in (10, 20):
        nanolm("train", *given, f"trainer.max_steps={steps}")
    assert RunDirectory(nanolm.folder / "mine").read_summary().step == 20
    done = nanolm("train", *given, "trainer.max_steps=20")
    assert "nothing to do" in done.stderr
    assert done.returncode == 0
    done = nanolm("train", *overrides, "hydra.run.dir=mine")
    assert done.returncode == 2
    assert "the directory already contains a run" in done.stderr


def test_multirun_trains_every_combination(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.sweep.dir=sweep")
    done = nanolm("train", "-m", *overrides, "model=bigram,gpt2", "seed=1,2")
    assert done.returncode == 0, done.stderr
    runs = [RunDirectory(path) for path in sorted((nanolm.folder / "sweep").glob("*/"))]
    found = [(run.read_summary().choices["model"], run.read_summary().seed) for run in runs]
    assert found == [("bigram", 1), ("bigram", 2), ("gpt2", 1), ("gpt2", 2)]
    assert [run.path.name.rpartition("-")[0] for run in runs] == [f"model={m},seed={n}" for m, n in found]


def test_cfg_job_prints_the_settings(nanolm: Nanolm) -> None:
    done = nanolm("train", "model=bigram", "--cfg", "job")
    assert "name: bigram" in done.stdout
    assert list(nanolm.folder.iterdir()) == []


def test_a_plugin_is_imported_from_the_current_folder(nanolm: Nanolm, small_text: Path) -> None:
    (nanolm.folder / "my_masks.py").write_text(
        "from nanolm.registry import MASKS\n"
        "@MASKS.register('last_two')\n"
        "def last_two(query, key, config):\n    return (key <= query) & (key > query - 2)\n"
    )
    overrides = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.run.dir=run")
    done = nanolm("train", *overrides, "plugins=[my_masks]", "mask=last_two")
    assert done.returncode == 0, done.stderr
    done = nanolm("generate", "run", "--prompt", "1")
    assert done.returncode == 2
    assert "--plugins my_module" in done.stderr
    done = nanolm("generate", "run", "--prompt", "1", "--plugins", "my_masks")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_user_modules_do_not_hide_installed_ones(nanolm: Nanolm, small_text: Path) -> None:
    for name in ("numpy", "random", "tokenize", "torch", "tempfile"):
        (nanolm.folder / f"{name}.py").write_text("raise SystemExit('the user file was imported')\n")
    (nanolm.folder / "my_masks.py").write_text(
        "import numpy\nfrom nanolm.registry import MASKS\n"
        "@MASKS.register('own')\ndef own(query, key, config):\n    return key <= query\n"
    )
    overrides = (
        *SMALL,
        "dataset=text",
        f"dataset.path={small_text}",
        "trainer.max_steps=1",
        "plugins=[my_masks]",
        "mask=own",
    )
    command = [sys.executable, "-m", "nanolm", "train", *overrides, "hydra.run.dir=run"]
    done = subprocess.run(command, cwd=nanolm.folder, env=nanolm.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The command that is already imported finds its plugins as well.
    done = nanolm("generate", "run", "--prompt", "1", "--max-new-tokens", "1", "--plugins", "my_masks")
    assert done.returncode == 0, done.stderr
    done = nanolm("train", *overrides, "plugins=[random]")
    assert done.returncode == 2
    assert f"{nanolm.folder}/random.py is not imported: {random.__file__} has the same name" in done.stderr


def test_an_invalid_job_stops_a_sweep_before_it_starts(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.sweep.dir=sweep")
    done = nanolm("train", "-m", *overrides, "size.n_heads=3,2,5")
    assert done.returncode == 2
    for heads in (3, 5):
        assert f"size.d_model (16) is not divisible by size.n_heads ({heads})" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (nanolm.folder / "sweep").exists()
