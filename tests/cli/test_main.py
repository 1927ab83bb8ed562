import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from nanolm.runs.directory import RunDirectory
from tests.helpers import SMALL, Nanolm

HEAVY = ("torch", "wandb", "hydra", "omegaconf", "numpy", "rich", "tqdm", "torchtext", "tokenizers")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys\nfrom nanolm.cli.main import run\nrun(['--help'])\n"
    code += f"print([n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"
    for name, command in cli.COMMANDS.items():
        assert f"nanolm {name} " in done.stdout
        assert command.example in done.stdout
    assert done.stdout.splitlines()[0].startswith("nanolm: ")


def test_parsers_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom nanolm.cli import main\n"
        "for name in main.COMMANDS:\n    if name != 'train':\n        main.make_parser(name)\n"
        "print([n for n in ('torch', 'hydra', 'rich', 'wandb', 'scipy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_settings_are_checked_before_torch_is_imported() -> None:
    code = (
        "import sys\nfrom nanolm.cli import main as cli\n"
        "try:\n cli.run(['train', 'trainer.max_step=1'])\nexcept ValueError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["trian"], r"'trian'[\s\S]*did you mean train\?"), (["data", "shwo"], r"'data shwo'[\s\S]*did you mean show\?")],
)
def test_a_mistyped_command_suggests_the_nearest(arguments: list[str], expected: str) -> None:
    with pytest.raises(SettingsError, match="unknown command " + expected):
        cli.run(arguments)


@pytest.mark.parametrize("name", ["data", "mask", "schedule", "wandb", *cli.COMMANDS])
def test_every_command_has_help(name: str, nanolm: Nanolm) -> None:
    done = nanolm(*name.split(), "--help")
    assert done.returncode == 0
    assert f"nanolm {name}" in done.stdout
    assert done.stderr == ""
    if name == "train":
        for part in (
            "optimizer:  adafactor, adam, adamw, lion, muon, schedule_free, sgd",
            "dataset:    huggingface, jsonl, python_docs",
            "trainer.max_steps=1000",
        ):
            assert part in done.stdout
        assert "schema" not in done.stdout


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
    assert "the run was trained with optimizer.lr=0.002, and the command line sets 0.5" in done.stderr

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


def test_python_m_nanolm_equals_the_script(nanolm: Nanolm) -> None:
    script = Path(sys.executable).with_name("nanolm")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.stdout == nanolm("--help").stdout
    assert nanolm("--version").stdout.startswith("nanolm 0.")


def test_an_invalid_job_stops_a_sweep_before_it_starts(nanolm: Nanolm, small_text: Path) -> None:
    overrides = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.sweep.dir=sweep")
    done = nanolm("train", "-m", *overrides, "size.n_heads=3,2,5")
    assert done.returncode == 2
    for heads in (3, 5):
        assert f"size.d_model (16) is not divisible by size.n_heads ({heads})" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (nanolm.folder / "sweep").exists()


def exit_status(*arguments: str) -> int:
    """Run a command in this process and return its exit status."""
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    return int(error.value.code or 0)


LONG = "a" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", LONG],
        ["generate", LONG, "--prompt", "x"],
        ["checkpoints", LONG],
        ["runs", LONG],
        ["compare", LONG],
        ["diff", LONG, LONG],
        ["report", LONG],
        ["report", ".", "-o", LONG],
        ["report", ".", "--png", LONG],
        ["wandb", "push", LONG, "--offline"],
        ["mask", "show", "--config-dir", LONG],
        ["data", "prepare", "dataset=text", f"dataset.path={LONG}"],
        ["train", f"resume={LONG}"],
        ["train", "dataset=text", "dataset.path=x", f"hydra.run.dir={LONG}"],
        ["train", "-m", "dataset=text", "dataset.path=x", f"hydra.sweep.dir={LONG}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(LONG, "LONG")[:60],
)
def test_too_long_file_names_are_reported(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status(*arguments) == 2
    errors = capsys.readouterr().err
    assert "File name too long" in errors
    assert LONG in errors
    assert "hint:" in errors
    assert not list(tmp_path.iterdir())


def test_a_deleted_current_folder_is_reported(tmp_path: Path) -> None:
    code = (
        "import os, sys, runpy\nos.rmdir(os.getcwd())\nsys.argv = ['nanolm', 'runs']\n"
        "sys.path.insert(0, '')\nrunpy.run_module('nanolm', run_name='__main__')"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)}
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("nanolm: the current folder has been deleted")


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_outputs_being_a_file_is_reported(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outputs").touch()
    assert exit_status("train", *sweep, "dataset=text", "dataset.path=outputs") == 2
    errors = capsys.readouterr().err
    assert "where: outputs" in errors
    assert "hint:" in errors
