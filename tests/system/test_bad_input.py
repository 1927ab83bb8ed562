"""Mistakes of a user end with a clear message, exit status 2 and no run directory."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from nanolm.analysis.collection import find
from nanolm.cli import main as cli
from nanolm.config.budget import Budget
from nanolm.json_text import is_finite_number
from nanolm.report.contents import gather
from nanolm.report.html import to_script
from nanolm.runs.directory import RunDirectory
from nanolm.sweeps.states import read_job_summary
from tests.helpers import SMALL, Nanolm
from tests.runs.made import make_run


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer=adamx"], ["no optimizer is called 'adamx'", "did you mean adam?"]),
        (["trainer.max_step=3"], ["there is no setting 'trainer.max_step'", "did you mean trainer.max_steps?"]),
        (["+trainer.max_stepps=3"], ["there is no setting 'trainer.max_stepps'", "did you mean trainer.max_steps?"]),
        (["optimizer.lr=fast"], ["optimizer.lr is 'fast', and must be a number", "optimizer.lr=fast"]),
        (["size.n_heads=3"], ["size.d_model (16) is not divisible by size.n_heads (3)", "n_heads = 1, 2 or 4"]),
        (["size.context_length=900"], ["the val split has", "needs 901", "size.context_length 900"]),
        (["dataset.path=missing.txt"], ["no file or folder matching 'missing.txt'"]),
        (["dataset.path=empty.txt"], ["the text is empty", "empty.txt"]),
        (["dataset.path=latin1.txt"], ["byte 3 (0xe9) is not UTF-8", "latin1.txt, byte offset 3"]),
        (["dataset=tiny_shakespeare", "dataset.url=http://127.0.0.1:9/x"], ["cannot fetch", "dataset.path=FILE"]),
        (["trainer.device=cuda:77"], ["no device 'cuda:77'", "available devices: cpu"]),
        (["plugins=[no_such_module]"], ["the plugin 'no_such_module' was not found"]),
        (["tokenizer=pretrained", f"tokenizer.path={'a' * 300}"], ["File name too long", "choose a shorter name"]),
        (["resume=nowhere"], ["there is no folder nowhere"]),
        (["--config-dir", "nowhere"], ["there is no folder nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_gives_a_message_status_2_and_no_run(
    overrides: list[str], expected: list[str], nanolm: Nanolm, small_text: Path
) -> None:
    (nanolm.folder / "empty.txt").touch()
    (nanolm.folder / "latin1.txt").write_bytes("café".encode("latin1"))
    text = [] if any(override.startswith("dataset=") for override in overrides) else ["dataset=text"]
    path = (
        []
        if text == [] or any("dataset.path" in override for override in overrides)
        else [f"dataset.path={small_text}"]
    )
    done = nanolm("train", *SMALL, *text, *path, *overrides)
    assert done.returncode == 2, done.stderr
    for part in expected:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("nanolm: ")
    names = {entry.name for entry in nanolm.folder.rglob("*")}
    assert names - {"outputs"} == {"empty.txt", "latin1.txt"}


def test_commands_report_bad_arguments_and_damaged_runs(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.run.dir=run")
    assert nanolm("train", *line).returncode == 0
    run = nanolm.folder / "run"
    done = nanolm("generate", run, "--prompt", "1 Zü")
    assert done.returncode == 2
    assert "2 characters not in the tokenizer's vocabulary: 'Z' (U+005A), 'ü' (U+00FC)" in done.stderr
    for command in ("generate", "evaluate"):
        prompt = ["--prompt", "1"] if command == "generate" else []
        done = nanolm(command, nanolm.folder, *prompt)
        assert done.returncode == 2
        assert "is not a run directory" in done.stderr
        assert str(run) in done.stderr, "the nearest run directory is suggested"
    weights = run / "checkpoints" / "step-00000005" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    for arguments in (
        ["generate", run, "--prompt", "1"],
        ["evaluate", run],
        ["train", f"resume={run}", "trainer.max_steps=9"],
    ):
        done = nanolm(*arguments)
        assert done.returncode == 2
        assert "model.safetensors has been altered" in done.stderr
        assert "Traceback" not in done.stderr


def test_non_finite_numbers_in_files_break_no_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read files with NaN, Infinity, 1e999 and .inf, which other programs may write."""
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad", losses=(2.0, 1.9))
    for number in ("NaN", "Infinity", "1e999", "9" * 400):
        summary = json.loads((good / "summary.json").read_text())
        numbers = {name for name, value in summary.items() if is_finite_number(value)}
        text = json.dumps({name: "@" if name in numbers else value for name, value in summary.items()})
        (bad / "summary.json").write_text(text.replace("3.5", number).replace('"@"', number))
        lines = (good / "metrics.jsonl").read_text().splitlines()
        damaged = [
            re.sub(r"(tokens|loss|seconds|grad_norm|lr)\": [\d.]+", rf'\1": {number}', line) for line in lines[:5]
        ]
        (bad / "metrics.jsonl").write_text("\n".join([*damaged, *lines[5:], *damaged[:1], ""]))
        config = (good / "config.yaml").read_text()
        (bad / "config.yaml").write_text(re.sub("(lr|weight_decay|clip_norm): .*", r"\1: .inf", config))
        commands = (
            ["runs", str(tmp_path), "--json"],
            ["runs", str(tmp_path), "--sort", "step"],
            ["compare", str(tmp_path), "--json", "--target", "1.95"],
            ["compare", str(tmp_path)],
            ["compare", str(tmp_path), "--csv"],
            ["diff", str(good), str(bad), "--json", "--all"],
            ["diff", str(good), str(bad)],
        )
        for command in commands:
            assert cli.run(command) == 0
            output = capsys.readouterr().out
            if "--json" in command:
                json.loads(output, parse_constant=pytest.fail)
        page = to_script(dataclasses.asdict(gather(find([tmp_path]))))
        json.loads(page, parse_constant=pytest.fail)
        # A run of more than ten steps would raise an error.
        assert not read_job_summary(RunDirectory(bad), Budget("max_steps", 10)).is_complete(Budget("max_steps", 10))


def test_resuming_refuses_links_in_a_run(nanolm: Nanolm, small_text: Path) -> None:
    line = (*SMALL, "dataset=text", f"dataset.path={small_text}", "trainer.max_steps=5", "hydra.run.dir=run")
    assert nanolm("train", *line).returncode == 0
    (nanolm.folder / "victim").write_text("mine")
    for name in ("metrics.jsonl", "train.log"):
        (nanolm.folder / "run" / name).unlink()
        (nanolm.folder / "run" / name).symlink_to("../victim")
    done = nanolm("train", "resume=run", "trainer.max_steps=9")
    assert done.returncode == 2
    assert "metrics.jsonl is a symbolic link, train.log is a symbolic link" in done.stderr
    assert (nanolm.folder / "victim").read_text() == "mine"
