import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanolm.cli import main as cli
from nanolm.errors import SettingsError
from tests.helpers import Nanolm

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
            "dataset:    huggingface, instructions, jsonl, python_docs",
            "trainer.max_steps=1000",
        ):
            assert part in done.stdout
        assert "schema" not in done.stdout


def test_python_m_nanolm_equals_the_script(nanolm: Nanolm) -> None:
    script = Path(sys.executable).with_name("nanolm")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert done.stdout == nanolm("--help").stdout
    assert nanolm("--version").stdout.startswith("nanolm 0.")


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
